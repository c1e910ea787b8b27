"""Processes of Python that start at once: a server imports what takes long, and forks.

`start("-m", "mmgen.jobs.launch", "ldm")` is as `subprocess.Popen([sys.executable, ...], stdout=PIPE, text=True)`,
`run(...)` as `subprocess.run(..., capture_output=True, text=True)`, each in its own folder and environment.
`run("papermill", notebook, out, ...)` is papermill's command with IPython in the same process instead of a kernel.
A test of what a process imports, of its memory, or of a command's way to its code needs a process of its own.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

from mmgen.jobs.registry import JOBS

CONTEXT = multiprocessing.get_context("forkserver")
SLOW = "torch torch._dynamo transformers datasets accelerate scipy.linalg papermill.cli execnb.shell".split()
CONTEXT.set_forkserver_preload(SLOW + [row.fit.partition(":")[0] for row in JOBS.values() if row.fit])


def kernel():
    "Makes papermill execute cells in this process, and gives the engine's name."
    from execnb.shell import CaptureShell
    from nbformat import from_dict
    from papermill.engines import Engine, papermill_engines

    class InProcess(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **options):
            shell = CaptureShell(mpl_format="png")
            for at, cell in enumerate(manager.nb.cells):
                manager.cell_start(cell, at)
                if cell.cell_type == "code":
                    cell.outputs = [from_dict(output) for output in shell.run(cell.source)]
                    for output in cell.outputs:
                        if output.output_type == "stream":
                            output.text = "".join(output.text)
                if shell.exc is not None:
                    manager.cell_exception(cell, at)
                    return
                manager.cell_complete(cell, at)

    papermill_engines.register("in-process", InProcess)
    return "in-process"


def begin(arguments, folder, environment, out, errors):
    "In the new process: what `python ARGUMENTS` does."
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(out.fileno(), 1)
    if errors:
        os.dup2(errors.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, name, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(name, "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        from papermill.cli import papermill

        papermill([name, *rest, "--engine", kernel()], prog_name="papermill")


class Process:
    "What tests use of subprocess.Popen; `communicate` kills it after `timeout` seconds, an hour if None."

    def __init__(self, arguments, cwd, env, out, errors):
        environment = dict(os.environ if env is None else env)
        given = (tuple(map(str, arguments)), str(cwd or os.getcwd()), environment, out, errors)
        self.process = CONTEXT.Process(target=begin, args=given)
        self.process.start()
        self.pid, self.stdout = self.process.pid, None

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("python", timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        late = threading.Timer(timeout or 3600, self.kill)
        late.start()
        text = self.stdout.read()
        self.wait()
        late.cancel()
        return text, None


def start(*arguments, cwd=None, env=None, merge=True):
    "A process whose output, with `merge` its errors too, is read from `stdout`."
    read, write = CONTEXT.Pipe(duplex=False)
    process = Process(arguments, cwd, env, write, write if merge else None)
    write.close()
    process.stdout = os.fdopen(os.dup(read.fileno()), encoding="utf-8")
    return process


def run(*arguments, cwd=None, env=None, timeout=600):
    "A process that has ended, with its `returncode`, `stdout` and `stderr`."
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "errors")]
        ends = [multiprocessing.connection.Connection(os.open(file, os.O_CREAT | os.O_WRONLY)) for file in files]
        process = Process(arguments, cwd, env, *ends)
        for end in ends:
            end.close()
        try:
            process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, *(file.read_text("utf-8") for file in files))
