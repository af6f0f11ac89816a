"""Malformed input of every kind that a user can hand in, made by rule; nothing of it is stored.

python -m tests.malformed FOLDER     writes the corpus and prints one line per case

A case is a command as it would be typed. `REFUSED`: exit status not 0, one sentence that names the file. `SKIPPED`:
exit status 0, and the output names and counts what was left out. `EITHER`: damage that may hit something that does
not matter; then the command succeeds.
"""
