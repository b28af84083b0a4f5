"Other cells of the same kernel while a run trains: random draws, failing watchers, impatient interrupts, long runs"
import json, os, random, signal, threading, time
import numpy, pytest, tiny, torch
from qlora_nb.training.run import Interrupted
from qlora_nb.training.start import current, resume, train
from test_resume import ROWS, cell, final, stop

# ---- random numbers

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('whole')), ROWS, name='run'))

@pytest.fixture
def drawing():
    "Another thread that draws without a pause, as a cell would, and seeds anew now and then"
    over = threading.Event()
    def draw():
        while not over.is_set():
            torch.rand(3), random.random(), numpy.random.rand()
            if random.random()<.01: torch.manual_seed(7)
    thread = threading.Thread(target=draw)
    begun = []
    def begin(run):
        if run.status=='training' and not begun: begun.append(thread.start())
    yield begin
    over.set()
    thread.join()

def test_draws_of_other_cells_change_nothing(folder, tmp_path, whole, drawing):
    assert final(train(cell(folder, tmp_path), ROWS, name='run', on_change=drawing))==whole

def test_draws_of_other_cells_change_nothing_after_a_resume_either(folder, tmp_path, whole, drawing):
    text = cell(folder, tmp_path)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(7, stop))
    assert final(resume(str(run.folder), text, ROWS, on_change=drawing))==whole

def test_a_run_seeds_nothing_but_itself(folder, tmp_path):
    seen = []
    def states(): return numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist() # datasets draws from Python's
    def watch(run):
        if run.status=='training' and not seen: seen.append(states())
    numpy.random.seed(7), torch.manual_seed(7)
    wanted = states()
    train(cell(folder, tmp_path, max_steps=1), ROWS, on_change=watch)
    assert seen==[wanted]

# ---- watchers

def test_a_watcher_that_exits_is_taken_off(folder, tmp_path):
    def leaves(run):
        if run.step==2: raise SystemExit(1)
    run = train(cell(folder, tmp_path, max_steps=3), ROWS, on_change=leaves)
    assert run.status=='finished' and run.step==3 and run.notes.count('a panel failed and was taken off: SystemExit: 1')==1

# ---- interrupts

@pytest.mark.parametrize('phase', ['loading', 'trying', 'training', 'evaluating', 'saving'])
def test_two_interrupts_end_the_cell_at_once_and_lose_no_step(folder, tmp_path, phase):
    gate,seen = threading.Event(),[]
    def watch(run):
        early = phase in ('loading', 'trying')
        if seen or threading.current_thread() is threading.main_thread() or run.status!=phase or not early and run.step<2: return
        seen.append(run.step)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(.03)
        gate.wait(20)
    text = cell(folder, tmp_path, max_steps=500, save_steps=3, eval_steps=2).replace('\noutput:', '\n  eval_strategy: steps\noutput:')
    with pytest.raises(Interrupted) as e: train(text, ROWS, name='run', on_change=watch)
    run,(line,) = current(),e.value._render_traceback_()
    assert run.running
    gate.set()
    assert run._done.wait(60) and run.status=='stopped' and run.step in (seen[0], seen[0]+1)
    assert run.checkpoints[-1:]==[f'checkpoint-{run.step}']*bool(run.step)
    if seen[0]: return
    assert line=='run ends soon, before its first step: nothing to resume; start again with %qlora_train'
    assert 'run: stopped before its first step: nothing to resume; start again with %qlora_train' in str(run)

# ---- long runs

def test_a_checkpoint_does_not_grow_with_the_steps(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=60, save_steps=20)
    run = train(text, ROWS, name='run')
    sizes = [(run.folder/name/'trainer_state.json').stat().st_size for name in run.checkpoints]
    assert len(sizes)==3 and sizes[-1]<sizes[0]+100 and sizes[-1]<2500
    logs = json.loads((run.folder/run.checkpoints[-1]/'trainer_state.json').read_text())['log_history']
    assert {log['step'] for log in logs}<={60} and len(run.losses)==60
