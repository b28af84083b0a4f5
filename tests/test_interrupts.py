"An interrupt at any line before a run trains is one line, and leaves no lock, no folder and no thread that nobody knows of"
import json, shutil, signal, sys, threading, time
from pathlib import Path
import pytest, tiny
from qlora_nb.errors import QLoRAError
from qlora_nb.interrupts import Interrupted, interrupts_noted
from qlora_nb.store.folder import Lock
from qlora_nb.training import start
from qlora_nb.training.run import Abandoned
from qlora_nb.training.start import current, new_run, train
from test_resume import bytes_of

ROOMS = ('ui/arguments.py', 'ui/magics.py', 'ui/panels.py', 'training/start.py', 'training/run.py', 'store/folder.py', 'store/files.py', 'interrupts.py')

def cell(folder, tmp_path): return f'model: {folder}\ndata: {{train: rows.jsonl}}\ntraining: {{max_steps: 4, max_length: 64}}\noutput: {{output_dir: {tmp_path}/runs}}\n'

@pytest.fixture
def text(ip, folder, tmp_path, monkeypatch):
    "A shell with a config and rows in a file"
    monkeypatch.chdir(tmp_path)
    Path('rows.jsonl').write_text(''.join(json.dumps(row)+'\n' for row in tiny.rows()))
    ip.run_cell('%%qlora_config\n'+cell(folder, tmp_path)).raise_error()
    return cell(folder, tmp_path)

@pytest.fixture
def waits(monkeypatch):
    "A worker that waits for a stop in place of training"
    def wait(run, space):
        until = time.monotonic()+.02
        while time.monotonic()<until:
            if run._stop.is_set(): raise Abandoned
            time.sleep(.001)
    return lambda: monkeypatch.setattr(start, '_train', wait)

class AtLine:
    "Sends this process an interrupt at the n-th line of the magic that lies in one of `ROOMS`"
    def __init__(self, n): self.n,self.seen,self.magic,self.where = n,0,None,None
    def called(self, frame, event, arg):
        here = frame.f_code.co_filename.endswith
        if frame.f_code.co_name=='magic' and here('ui/arguments.py'): self.magic = frame
        return self.line if self.magic and any(map(here, ROOMS)) else None
    def line(self, frame, event, arg):
        if event=='return' and frame is self.magic: sys.settrace(None)
        if event!='line': return self.line
        self.seen += 1
        if self.seen==self.n:
            sys.settrace(None)
            self.where = f'{Path(frame.f_code.co_filename).name} {frame.f_lineno}'
            signal.raise_signal(signal.SIGINT)
        return self.line

def interrupted(ip, line, n):
    "What a cell ends with that is interrupted at line `n`, and where that was"
    at = AtLine(n)
    sys.settrace(at.called)
    try: result = ip.run_cell(line)
    finally: sys.settrace(None)
    return result.error_in_exec, at.where

def left(ip, out):
    "What an interrupted cell left that it should not"
    run = current()
    if run and run.running:
        run.stop('test')
        run._done.wait(10)
    for folder in out.glob('*') if out.exists() else ():
        if not {'run.json', 'config.yaml'}<={p.name for p in folder.iterdir()}: yield f'half a folder: {folder.name}'
        if json.loads((folder/'run.json').read_text())['status']=='loading': yield f'a run that never was: {folder.name}'
        try: Lock(folder).take().drop()
        except QLoRAError as e: yield str(e)

@pytest.mark.parametrize('line', ['%qlora_train -o run', '%qlora_train --background'])
def test_a_new_run(ip, text, tmp_path, waits, line):
    waits()
    for n in range(2, 10**6, 3):
        error,where = interrupted(ip, line, n)
        if where is None: break
        going = current() is not None and current().running
        assert error is None or isinstance(error, Interrupted) and len(error._render_traceback_())==1, where
        assert not going or '--background' in line and (error is None or 'goes on, and %qlora_stop ends it' in str(error)), where
        assert list(left(ip, tmp_path/'runs'))==[], where
        shutil.rmtree(tmp_path/'runs', ignore_errors=True)
    assert n>200 and list(left(ip, tmp_path/'runs'))==[]

def test_a_run_that_is_resumed(ip, text, tmp_path, waits):
    run = train(text, name='keep', on_change=tiny.at_step(2, lambda run: run.stop('test')))
    before = bytes_of(run.folder)
    waits()
    for n in range(2, 10**6, 7):
        error,where = interrupted(ip, f'%qlora_train --resume {run.folder}', n)
        if where is None: break
        assert error is None or isinstance(error, Interrupted) and len(error._render_traceback_())==1, where
        assert not current().running and list(left(ip, tmp_path/'runs'))==[] and bytes_of(run.folder)==before, where
    assert n>200

def test_a_script(text, tmp_path):
    "Interrupted while the panel of the start is drawn, which is before the worker"
    def press(run):
        if threading.current_thread() is threading.main_thread() and not run._stop.is_set(): signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train(text, name='run', on_change=press)
    assert list((tmp_path/'runs').iterdir())==[]
    assert train(text, name='run', max_steps=1).status=='finished'

def test_a_thread_that_cannot_be_started_leaves_nothing(text, tmp_path, monkeypatch):
    was = current()
    def full(self): raise RuntimeError("can't start new thread")
    with monkeypatch.context() as m:
        m.setattr(start.Thread, 'start', full)
        with pytest.raises(RuntimeError): train(text, name='run')
    assert current() is was and list((tmp_path/'runs').iterdir())==[]
    assert train(text, name='run', max_steps=1).status=='finished'

def test_sigterm_is_passed_on_after_a_run_that_did_not_begin(text, monkeypatch):
    got = []
    before = signal.signal(signal.SIGTERM, lambda *signal: got.append(signal))
    with monkeypatch.context() as m:
        m.setattr(start.Thread, 'start', lambda self: 1/0)
        with pytest.raises(ZeroDivisionError): train(text, name='run')
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert len(got)==1

def test_a_folder_with_something_of_its_own_stays(text, tmp_path):
    run = new_run(text, 'run')
    (run.folder/'mine.txt').write_text('x')
    start.withdraw(run)
    assert [p.name for p in run.folder.iterdir()]==['mine.txt']

def test_interrupts_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_noted() as came: signal.raise_signal(signal.SIGINT)
        assert came==[] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally: signal.signal(signal.SIGINT, before)
