"""`dash-vision studio`: a page in the browser on which people train without a command line.

The page is served by Starlette and uvicorn, from templates of Jinja2, one style sheet and one script. Gradio 6.31 was
tried first. It asked for nothing outside either, but it answered requests that were made out to other hosts and took
uploads from other sites, a reload emptied its fields, and it brought 55 packages. Here a page is an address of its own
that shows what is in the folders, so a reload, a second page and a new start find the same, and who may ask for what is
decided in one place (safety.py).

Every training is the ordinary command as a process of its own (launching.py). Nothing about a run is kept here: what
the page shows of it is read from the run's folder (found.py).
"""
