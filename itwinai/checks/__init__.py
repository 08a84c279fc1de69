"""Named checks of any LightningModule: does it train, resume and evaluate alike, wherever it runs?

`checker.py` has `check`, which runs them; `registry.py` their names. Each check is a file of its own, and asks a
`Session` for the training runs it looks at: several checks look at the same run. Every run is a child process with a
time limit (`processes.py`), so that what hangs or crashes fails its check and nothing else.
"""
