"Other cells of the same kernel while a run trains: random draws, failing watchers, impatient interrupts, long runs"
import json, os, random, signal, subprocess, sys, threading, time
import numpy, pytest, tiny, torch
from conftest import root
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

def states():
    "Of Python, NumPy and PyTorch, as values that can be compared"
    of_numpy = numpy.random.get_state()
    return random.getstate(), (of_numpy[1].tolist(), *of_numpy[2:]), torch.get_rng_state().tolist()

def seeded():
    for seed in (random.seed, numpy.random.seed, torch.manual_seed): seed(7)
    return states()

MUCH = dict(save_steps=2, eval_steps=2, load_best_model_at_end='true', eval_strategy='steps')
ASKED = 'tracking: {sample_prompts: [who is on the mat 1], sample_steps: 2}\n'

@pytest.mark.parametrize('more', [{}, MUCH, dict(train_sampling_strategy='group_by_length'), dict(packing='true')])
def test_a_run_leaves_the_random_states_of_the_notebook(folder, tmp_path, more):
    "Validation, samples, the best adapter loaded again; then resumed, and again after its end"
    text,before = cell(folder, tmp_path, num_train_epochs=2, extra=ASKED, **more),seeded()
    run = train(text, ROWS, name='run', on_change=tiny.at_step(3, stop))
    assert run.status=='stopped' and states()==before
    assert resume(str(run.folder), text, ROWS).status=='finished' and states()==before
    assert resume(str(run.folder), text, ROWS, extend='2').status=='finished' and states()==before

def test_a_run_that_fails_or_is_made_smaller_leaves_them_too(folder, tmp_path, monkeypatch):
    from qlora_nb.training import trainer
    before,learn,failed = seeded(),trainer.Trainer.training_step,[]
    def full(self, *args, **kw):
        if self.state.global_step==2 and not failed: raise failed.append(1) or MemoryError()
        return learn(self, *args, **kw)
    monkeypatch.setattr(trainer.Trainer, 'training_step', full)
    for on_oom,status in (('stop', 'failed'), ('shrink', 'finished')):
        failed.clear()
        try: train(cell(folder, tmp_path, max_steps=4, on_oom=on_oom), ROWS, name=on_oom)
        except Exception: pass
        assert current().status==status and failed and states()==before

def test_a_cell_draws_what_it_would_without_a_run(folder, tmp_path):
    "One number at each moment that a watcher is told of, trial and steps among them; none comes twice"
    text,drawn = cell(folder, tmp_path, num_train_epochs=1, extra=ASKED, **MUCH),[]
    def draw(): return random.random(), numpy.random.rand(), torch.rand(()).item()
    seeded()
    train(text, ROWS, on_change=lambda run: drawn.append(draw()))
    seeded()
    assert len(drawn)>30 and drawn==[draw() for _ in drawn]

def test_the_first_run_of_a_process_leaves_them_too(folder, tmp_path):
    "Some libraries draw while they are imported"
    code = f"import random, sys; sys.path[:0] = {[str(root/'tests')]!r}; import tiny; random.seed(7); before = random.getstate()\n" \
        f"from qlora_nb.training.start import train; train({cell(folder, tmp_path, max_steps=1)!r}, dict(rows=tiny.rows(), held=tiny.rows(4, 100)))\n" \
        "assert 'trl' in sys.modules and random.getstate()==before"
    env = dict(os.environ, PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-2000:]

def test_a_step_on_a_gpu_touches_its_generator_alone():
    from qlora_nb.training.draws import Draws
    model = torch.nn.Linear(2, 2)
    model.config = type('Config', (), dict(to_dict=lambda self: {}))()
    draws,before = Draws(model, 42, on_cpu=False),seeded()
    draws.begin(1)
    assert states()==before
    number = torch.rand(()).item()
    draws.end()
    assert torch.rand(()).item()!=number

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
