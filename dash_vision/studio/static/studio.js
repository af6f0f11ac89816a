"use strict";
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));

// Give a form to the server: its answer, or an error with the command's sentence.
async function send(address, form = {}) {
  let response;
  try {
    response = await fetch(address, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(form)});
  } catch {
    throw new Error("the page has lost its server; start dash-vision studio again: trainings go on meanwhile");
  }
  const answer = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
  if (!response.ok) throw Object.assign(new Error(answer.error || `the server answered ${response.status}`), {flag: answer.flag});
  return answer;
}

async function ask(address) {
  const response = await fetch(address);
  return response.json();
}

function tell(element, sentence) {
  element.textContent = sentence ? sentence[0].toUpperCase() + sentence.slice(1) : "";
  element.hidden = !sentence;
}

let saying;
function say(sentence) {
  const place = find("#say");
  tell(place, sentence);
  clearTimeout(saying);
  saying = setTimeout(() => tell(place, ""), 4000);
}

// Wait for a command of the server that is no training: what it printed.
async function helped(key, place) {
  const bar = find("progress", place), words = find("span", place);
  place.hidden = false;
  try {
    for (;;) {
      const told = await ask(`/helper?key=${encodeURIComponent(key)}`);
      if (told.state === "failed") throw new Error(told.error);
      if (told.state !== "working") return told.text || "";
      if (told.share === null) bar.removeAttribute("value"); else bar.value = told.share;
      if (words) words.textContent = told.time;
      await wait(500);
    }
  } finally {
    bar.removeAttribute("value");
    bar.hidden = false;
  }
}

document.addEventListener("click", async event => {
  const copy = event.target.closest(".copy");
  if (!copy) return;
  const text = find(`#${copy.dataset.of}`).textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("copied");
  } catch {
    getSelection().selectAllChildren(find(`#${copy.dataset.of}`));
    say("selected; copy it by the keyboard");
  }
});

// -- two pictures under a slider

for (const viewer of all(".viewer")) {
  const selects = all("select", viewer), prompt = find(".prompt", viewer);
  const show = () => {
    const column = viewer.dataset.column;
    for (const select of selects) {
      const option = select.selectedOptions[0], image = find(`img.${select.dataset.side}`, viewer);
      image.src = `${option.value}${column}?v=${option.dataset.changed}`;
      image.alt = `${option.dataset.words}: ${prompt.textContent}`;
    }
  };
  find("input", viewer).addEventListener("input", event => viewer.style.setProperty("--at", `${event.target.value}%`));
  for (const select of selects) select.addEventListener("change", show);
  for (const button of all(".strip button", viewer))
    button.addEventListener("click", () => {
      viewer.dataset.column = button.dataset.column;
      prompt.textContent = button.dataset.prompt;
      for (const other of all(".strip button", viewer)) other.setAttribute("aria-pressed", String(other === button));
      show();
    });
}

// -- a new run

const form = find("#new");
if (form) newRun(form);

function newRun(form) {
  let folder = form.dataset.pictures;
  const drop = find("#drop"), place = find("#pictures"), problem = find("#problem");
  const base = find("#f-base"), other = find("#f-other");
  const kept = () => `new run: ${folder}`;

  // What was typed is there again after a reload.
  const fields = all("input:not([type=file]), select, textarea", form).filter(field => field.id !== "others" && !place.contains(field));
  try {
    const typed = JSON.parse(sessionStorage.getItem(kept()) || "{}");
    for (const field of fields) {
      const value = typed[field.name || field.id];
      if (value === undefined) continue;
      if (field.type === "checkbox") field.checked = value; else field.value = value;
    }
  } catch { /* a form without memory */ }
  const remember = () => {
    const typed = Object.fromEntries(fields.map(field => [field.name || field.id, field.type === "checkbox" ? field.checked : field.value]));
    sessionStorage.setItem(kept(), JSON.stringify(typed));
  };

  function values() {
    const found = {pictures: folder, base: base.value || other.value.trim()};
    for (const field of fields)
      if (field.name && !(field.type === "checkbox" && !field.checked)) found[field.name] = field.value;
    return found;
  }

  function showBase() {
    const chosen = base.selectedOptions[0];
    find("#h-base").textContent = chosen.dataset.about;
    other.hidden = base.value !== "";
    for (const [name, number] of [["resolution", chosen.dataset.side], ["max_train_steps", chosen.dataset.steps]])
      form.elements[name].placeholder = Number(number) ? number : "the base's own";
  }

  function wrong(error) {
    tell(problem, error ? error.message : "");
    for (const field of all(".wrong", form)) field.classList.remove("wrong");
    const field = error && error.flag && form.elements[error.flag];
    if (field && field.classList) {
      field.classList.add("wrong");
      const fold = field.closest("details");
      if (fold) fold.open = true;
    }
  }

  let checked = 0;
  async function check() {
    remember();
    showBase();
    const number = ++checked, asked = values();
    if (!asked.kind || !asked.kind.trim()) {
      find("#prompts").hidden = true;
      find("#shown-command").hidden = true;
      wrong(null);
      return;
    }
    try {
      const told = await send("/check", asked);
      if (number !== checked) return;
      find("#prompts").hidden = false;
      find("#p-instance").textContent = told.instance;
      find("#p-class").textContent = told.class;
      find("#t-class").hidden = find("#p-class").hidden = !form.elements.with_prior_preservation.checked;
      find("#p-shown").textContent = told.prompts.join("; ");
      find("#command").textContent = told.command;
      find("#shown-command").hidden = false;
      wrong(null);
    } catch (error) {
      if (number === checked) wrong(error);
    }
  }

  let soon;
  form.addEventListener("input", event => {
    if (place.contains(event.target)) return;
    clearTimeout(soon);
    soon = setTimeout(() => { check(); if (["resolution", "aspect_ratio_buckets"].includes(event.target.name) || event.target === base) list(); }, 350);
  });

  async function list() {
    if (!folder) return;
    const side = form.elements.resolution.value || form.elements.resolution.placeholder;
    const query = new URLSearchParams({resolution: side, buckets: String(form.elements.aspect_ratio_buckets.checked)});
    const bar = find("#uploading"), slow = setTimeout(() => { bar.removeAttribute("value"); bar.hidden = false; }, 400);
    const response = await fetch(`/pictures/${encodeURIComponent(folder)}/list?${query}`);
    place.innerHTML = await response.text();  // escaped by the server
    clearTimeout(slow);
    bar.hidden = true;
    const count = all(".picture", place).length;
    find("#shading").hidden = !count;
    drop.classList.toggle("small", count > 0);
  }

  // Pictures, one after another, each as the body of a request.
  async function take(files) {
    const list_ = [...files], bar = find("#uploading"), refused = find("#refused");
    if (!list_.length) return;
    try {
      if (!folder) {
        const made = await send("/pictures", {name: form.elements.kind.value});
        folder = made.name;
        form.dataset.pictures = folder;
        history.replaceState(null, "", made.address);
      }
      refused.replaceChildren();
      bar.hidden = false;
      for (const [number, file] of list_.entries()) {
        bar.value = number / list_.length;
        const answer = await upload(file, share => { bar.value = (number + share) / list_.length; });
        if (answer.error) {
          const line = document.createElement("li");
          line.className = "problem small";
          line.textContent = `not taken: ${answer.error}`;
          refused.append(line);
        }
      }
      refused.hidden = !refused.childElementCount;
      await list();
      check();
    } catch (error) {
      wrong(error);
    } finally {
      bar.hidden = true;
    }
  }

  function upload(file, progress) {
    return new Promise(done => {
      const request = new XMLHttpRequest();
      request.open("PUT", `/pictures/${encodeURIComponent(folder)}/upload?name=${encodeURIComponent(file.name)}`);
      request.upload.onprogress = event => progress(event.total ? event.loaded / event.total : 0);
      request.onload = () => {
        try { done(JSON.parse(request.responseText)); } catch { done({error: `${file.name}: the server answered ${request.status}`}); }
      };
      request.onerror = () => done({error: `${file.name}: the connection broke; drop it again`});
      request.send(file);
    });
  }

  find("#files").addEventListener("change", async event => { await take(event.target.files); event.target.value = ""; });
  for (const name of ["dragenter", "dragover"])
    addEventListener(name, event => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", event => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  find("#example")?.addEventListener("click", async event => {
    event.target.disabled = true;
    try {
      const made = await send("/pictures", {example: "cat"});
      folder = made.name;
      form.elements.kind.value = "cat";
      remember();
      location = made.address;
    } catch (error) {
      wrong(error);
    }
  });
  find("#others")?.addEventListener("change", event => { if (event.target.value) location = event.target.value; });

  place.addEventListener("change", async event => {
    const picture = event.target.closest(".picture");
    if (!picture || event.target.tagName !== "TEXTAREA") return;
    try {
      await send(`/pictures/${encodeURIComponent(folder)}/caption`, {name: picture.dataset.name, text: event.target.value});
      event.target.classList.remove("wrong");
      say("caption saved");
    } catch (error) {
      event.target.classList.add("wrong");
      wrong(error);
    }
  });
  place.addEventListener("click", async event => {
    const button = event.target.closest(".out");
    if (!button) return;
    try {
      await send(`/pictures/${encodeURIComponent(folder)}/aside`, {name: button.closest(".picture").dataset.name});
      say("taken out; it is in the folder left-out");
      await list();
      find("#files").focus();
    } catch (error) {
      wrong(error);
    }
  });

  find("#plan").addEventListener("click", async event => {
    const planned = find("#planned"), text = find("pre", planned), bar = find("progress", planned);
    event.target.disabled = true;
    text.hidden = true;
    bar.hidden = false;
    try {
      const {key} = await send("/plan", values());
      text.textContent = await helped(key, planned);
      text.hidden = false;
      bar.hidden = true;
      wrong(null);
    } catch (error) {
      planned.hidden = true;
      wrong(error);
    } finally {
      event.target.disabled = false;
    }
  });

  form.addEventListener("submit", async event => {
    event.preventDefault();
    const button = find("#start");
    if (!folder) return wrong(new Error("there are no pictures yet; drop some on the left"));
    button.disabled = true;
    try {
      const {address} = await send("/runs", values());
      location = address;
    } catch (error) {
      wrong(error);
      button.disabled = false;
    }
  });
  showBase();
  check();
  if (folder) list();
}

// -- a run

const run = find("#run");
if (run) {
  const address = `/runs/${run.dataset.run}`;
  for (const button of all("[data-act]", run))
    button.addEventListener("click", async () => {
      for (const other of all("[data-act]", run)) other.disabled = true;
      say(button.dataset.doing);
      find("#phase").textContent = button.dataset.doing;
      try {
        const answer = await send(`${address}/${button.dataset.act}`);
        if (answer.address) location = answer.address;
        else if (run.dataset.state !== "running") location.reload();
      } catch (error) {
        tell(find("#problem"), error.message);
        for (const other of all("[data-act]", run)) other.disabled = false;
      }
    });
  if (run.dataset.state === "running") watch(address);
  if (find("#compare-checkpoints")) which(address);
  const draw = find("#draw");
  if (draw) drawing(draw, address);
}

async function watch(address) {
  let drawn = "", measured = "", asked = false;
  const latest = find("#latest");
  for (const button of all("[data-act]")) button.addEventListener("click", () => { asked = true; });
  for (;;) {
    await wait(1000);
    let told;
    try { told = await ask(`${address}/state`); } catch { say("the page has lost its server; the training goes on"); await wait(2000); continue; }
    if (told.error) return tell(find("#problem"), told.error);
    if (told.state !== "running") return location.reload();
    if (!asked) find("#phase").textContent = told.phase;
    find("#numbers").textContent = told.numbers;
    if (told.known) find("#share").value = told.share; else find("#share").removeAttribute("value");
    if (told.chart !== drawn) find("#chart").innerHTML = drawn = told.chart;  // escaped by the server
    const log = find("#log pre"), low = log.scrollTop + log.clientHeight > log.scrollHeight - 30;
    log.textContent = told.log;
    if (low) log.scrollTop = log.scrollHeight;
    if (told.measured !== measured) find("#measured").innerHTML = measured = told.measured;  // escaped by the server
    find("#saved").hidden = !told.saved.length;
    find("#saved").textContent = `checkpoints: ${told.saved.join(", ")}`;
    if (told.latest && latest && told.latest.words !== find("h2", latest).textContent) {
      find("h2", latest).textContent = told.latest.words;
      find("ul", latest).replaceChildren(...told.latest.pictures.map(picture));
      latest.hidden = false;
      for (const part of all(".no-sheet")) part.remove();
    }
  }
}

function picture({address, prompt}) {
  const item = document.createElement("li"), image = document.createElement("img"), words = document.createElement("small");
  image.src = address;
  image.alt = words.textContent = prompt;
  item.append(image, words);
  return item;
}

// Which of the kept adapters to take.
function which(address) {
  const button = find("#compare-checkpoints"), step = find("#which-step");
  const compare = async form => {
    button.disabled = step.disabled = true;
    try {
      const {key} = await send(`${address}/checkpoints`, form);
      await helped(key, find("#comparing"));
      location.reload();
    } catch (error) {
      tell(find("#which-problem"), error.message);
      find("#comparing").hidden = true;
      button.disabled = step.disabled = false;
    }
  };
  button.addEventListener("click", () => compare({}));
  step.addEventListener("change", () => { if (step.value) compare({step: step.value}); });
}

function drawing(form, address) {
  const place = find("#drawing"), problem = find("#draw-problem"), button = find("button", form);
  const said = find("#d-said");
  find("#d-scale").addEventListener("input", event => { said.textContent = event.target.value; });
  const finish = async key => {
    button.disabled = true;
    try {
      await helped(key, place);
      const page = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
      find("#gallery").replaceChildren(...find("#gallery", page).childNodes);
      tell(problem, "");
    } catch (error) {
      tell(problem, error.message);
    } finally {
      place.hidden = true;
      button.disabled = false;
    }
  };
  const key = `draw ${decodeURIComponent(address.split("/").pop())}`;
  if (form.dataset.busy === "true") finish(key);
  form.addEventListener("submit", async event => {
    event.preventDefault();
    try {
      await send(`${address}/draw`, Object.fromEntries(new FormData(form)));
      await finish(key);
    } catch (error) {
      tell(problem, error.message);
    }
  });
}

// -- the list, while something is at work in it

if (find('.card[data-state="running"]'))
  setInterval(async () => {
    for (const card of all('.card[data-state="running"]')) {
      const told = await ask(`/runs/${encodeURIComponent(card.dataset.run)}/state`).catch(() => null);
      if (!told || told.error) continue;
      if (told.state !== "running") return location.reload();
      find(".pill", card).textContent = told.phase;
      find("p small", card).textContent = told.numbers;
      const bar = find("progress", card);
      if (told.known) bar.value = told.share; else bar.removeAttribute("value");
    }
  }, 1500);

// -- comparing

for (const select of all("#pair select"))
  select.addEventListener("change", () => { if (all("#pair select").every(s => s.value)) find("#pair").submit(); });
find("#report")?.addEventListener("click", async event => {
  const button = event.target, bar = find("#reporting"), link = find("#report-link"), place = document.createElement("div");
  button.disabled = true;
  bar.before(place);
  place.append(bar);
  bar.hidden = false;
  try {
    const {key, address} = await send("/reports", {a: button.dataset.a, b: button.dataset.b});
    await helped(key, place);
    link.href = address;
    link.hidden = false;
    link.focus();
    tell(find("#problem"), "");
  } catch (error) {
    tell(find("#problem"), error.message);
  } finally {
    bar.hidden = true;
    button.disabled = false;
  }
});
