"The magics in a real kernel: panels, errors and the ■ as a front end sees them"
import json, os, subprocess, sys, time
import nbformat, pytest, tiny
from conftest import root
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

def cells(folder, steps=3):
    rows = f'rows = {tiny.rows()!r}'
    cfg = (f'%%qlora_config\nmodel: {folder}\ndata: {{train: rows, validation: rows}}\n'
        f'training: {{per_device_train_batch_size: 2, gradient_accumulation_steps: 1, max_length: 64, max_steps: {steps}}}')
    return ['%load_ext qlora_nb', rows, cfg]

def notebook(*sources): return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
def execute(nb, path): return NotebookClient(nb, timeout=300, resources=dict(metadata=dict(path=str(path)))).execute()
def outputs(cell, kind): return [o for o in cell.outputs if o.output_type==kind]

def test_the_saved_notebook_holds_a_report_and_no_widget(folder, tmp_path):
    nb = execute(notebook(*cells(folder), '%qlora_train -o run', 'run.step'), tmp_path)
    shown = outputs(nb.cells[3], 'display_data')
    assert len(shown)==1 and not outputs(nb.cells[3], 'execute_result')
    data = shown[0].data
    assert 'run: finished' in data['text/plain'] and '<svg' in data['text/html'] and 'application/vnd.jupyter.widget-view+json' not in data
    assert nb.cells[4].outputs[0].data['text/plain']=='3'
    config = outputs(nb.cells[2], 'execute_result')[0].data
    assert 'max_steps' in config['text/plain'] and '<table' in config['text/html']

def test_run_all_stops_at_a_refusal_with_one_line(tmp_path):
    nb = notebook('%load_ext qlora_nb', '%%qlora_config\nmodel: demo\ndata: {train: demo}\nlora: {rnk: 8}', 'never = 1')
    with pytest.raises(CellExecutionError): execute(nb, tmp_path)
    error, = outputs(nb.cells[1], 'error')
    assert error.ename=='QLoRAError' and len(error.traceback)==1 and error.traceback[0].startswith('QLoRAError: line 4, lora.rnk: ')
    assert nb.cells[2].execution_count is None

@pytest.fixture
def kernel(tmp_path):
    km,kc = start_new_kernel(cwd=str(tmp_path))
    yield km, kc
    kc.stop_channels()
    km.shutdown_kernel(now=True)

def send(kc, code): return kc.execute(code)
def reply(kc, msg, timeout=120):
    while True:
        r = kc.get_shell_msg(timeout=timeout)
        if r['parent_header']['msg_id']==msg: return r['content']

def stored(kc, name):
    "A variable of the kernel as text"
    m = kc.execute('', user_expressions=dict(x=name))
    return reply(kc, m)['user_expressions']['x']['data']['text/plain']

def events(folder): return [l for p in folder.glob('runs/*/events.jsonl') for l in p.read_text().splitlines()]

def wait_for(kind, folder, n=1, seconds=90):
    end = time.time()+seconds
    while sum(f'"event": "{kind}"' in l for l in events(folder))<n:
        assert time.time()<end, f'no {kind} within {seconds} s'
        time.sleep(.05)

def training(kc, folder, tmp_path):
    "Send the cells and a long training, and wait until it has logged; the message that started it"
    for c in cells(folder, 500): assert reply(kc, send(kc, c))['status']=='ok'
    m = send(kc, '%qlora_train -o run')
    wait_for('log', tmp_path, 3)
    return m

def test_the_stop_button_of_the_kernel_finishes_the_step(kernel, folder, tmp_path):
    km,kc = kernel
    m = training(kc, folder, tmp_path)
    km.interrupt_kernel()
    assert reply(kc, m)['status']=='ok'
    assert stored(kc, 'run.status')=="'stopped'" and stored(kc, 'run.checkpoints')==f"['checkpoint-{stored(kc, 'run.step')}']"

def test_two_interrupts_end_the_cell_and_the_kernel_lives(kernel, folder, tmp_path):
    km,kc = kernel
    m = training(kc, folder, tmp_path)
    km.interrupt_kernel()
    time.sleep(.02)
    km.interrupt_kernel()
    r = reply(kc, m)
    assert r['status'] in ('ok', 'error') and (r['status']=='ok' or r['ename'] in ('Interrupted', 'KeyboardInterrupt'))
    assert reply(kc, send(kc, 'run._done.wait(30)'))['status']=='ok' and stored(kc, 'run.status')=="'stopped'"

def interrupted(km, kc, code, after):
    "Send a cell and press ■ `after` seconds later; the reply"
    m = send(kc, code)
    time.sleep(after)
    km.interrupt_kernel()
    return reply(kc, m)

def fine(kc, code):
    time.sleep(1) # A kernel drops what arrives right after an error
    r = reply(kc, send(kc, code))
    assert r['status']=='ok', r
    return r

def test_an_interrupt_of_a_magic_is_one_line_and_changes_nothing(kernel, folder, tmp_path):
    km,kc = kernel
    for c in cells(folder, 2): assert reply(kc, send(kc, c))['status']=='ok'
    assert reply(kc, send(kc, '%qlora_train -o run'))['status']=='ok'
    same = 'from qlora_nb import generate; one = [generate(run, "who", adapter, 8) for adapter in (True, False)]'
    fine(kc, same)
    before = stored(kc, 'one')
    for code in ('%qlora_compare --max-new-tokens 100000 -o never', '%qlora_generate --base --max-new-tokens 100000 who is on the mat'):
        r = interrupted(km, kc, code, 1)
        assert r['ename']=='Interrupted' and r['traceback']==[f'{code.split()[0]}: interrupted']
        fine(kc, same)
        assert stored(kc, 'one')==before and stored(kc, '"never" in globals(), run.model.training')=='(False, False)'

def test_an_interrupt_at_the_very_beginning_leaves_no_run_behind(kernel, folder, tmp_path):
    km,kc = kernel
    for c in cells(folder, 500): assert reply(kc, send(kc, c))['status']=='ok'
    for after in (0, .01, .03, .05, .1, .3):
        time.sleep(1) # A kernel drops what arrives right after an error
        r = interrupted(km, kc, '%qlora_train -o early', after)
        assert r['status']=='ok' or r['ename'] in ('Interrupted', 'KeyboardInterrupt') and len(r['traceback'])<2, r
    fine(kc, '%qlora_train -o run --max-steps 1')
    assert stored(kc, 'run.status')=="'finished'"

@pytest.mark.parametrize('restart', [True, False])
def test_a_kernel_that_ends_saves_the_run_in_the_background(kernel, folder, tmp_path, restart):
    km,kc = kernel
    for c in cells(folder, 5000): assert reply(kc, send(kc, c))['status']=='ok'
    assert reply(kc, send(kc, '%qlora_train -o run --background'))['status']=='ok'
    wait_for('log', tmp_path, 5)
    if restart: km.restart_kernel()
    else: km.shutdown_kernel()
    told = [json.loads(line) for line in events(tmp_path)]
    last = max(e['step'] for e in told if e['event']=='log' and 'loss' in e)
    assert [e['why'] for e in told if e['event']=='stop']==['exit'] and told[-1]['event']=='stopped'
    assert (tmp_path/'runs'/'run'/f'checkpoint-{last}'/'trainer_state.json').is_file()
    if not restart: return
    kc.wait_for_ready(timeout=120)
    fine(kc, '%load_ext qlora_nb')
    fine(kc, 'from qlora_nb.training.start import old_run; again = old_run("run")')
    assert stored(kc, 'again.resumed.name')==f"'checkpoint-{last}'"

def test_in_the_background_the_kernel_answers_meanwhile(kernel, folder, tmp_path):
    km,kc = kernel
    for c in cells(folder, 500): assert reply(kc, send(kc, c))['status']=='ok'
    assert reply(kc, send(kc, '%qlora_train -o run --background'))['status']=='ok'
    wait_for('log', tmp_path, 2)
    assert stored(kc, '1+1')=='2'
    again = reply(kc, send(kc, '%qlora_train'))
    assert again['ename']=='QLoRAError' and 'run is still running' in again['evalue']
    time.sleep(1) # a kernel drops what arrives right after an error
    assert reply(kc, send(kc, '%qlora_stop'))['status']=='ok'
    assert reply(kc, send(kc, 'run.wait()'))['status']=='ok' and stored(kc, 'run.status')=="'stopped'"

# ---- ■ and the button on the kernels that people have

@pytest.fixture(scope='module', params=['6.17.1', '6.31.0', '7.3.0', '7.4.0'])
def other_kernel(request, tmp_path_factory):
    "A kernel whose ipykernel is another one, everything else as installed; kept beside the environment for the next time"
    at = root/'.venv-kernels'/request.param
    if not (at/'ipykernel').is_dir():
        subprocess.run([sys.executable, '-m', 'pip', 'install', '-qq', '--disable-pip-version-check', '--no-deps', '--target', at,
            f'ipykernel=={request.param}', 'nest_asyncio==1.6.0'], check=True)
    cwd = tmp_path_factory.mktemp('kernel')
    km,kc = start_new_kernel(startup_timeout=180, cwd=str(cwd), env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(at), str(root), os.environ.get('PYTHONPATH', '')])))
    yield request.param, km, kc, cwd
    kc.stop_channels()
    km.shutdown_kernel(now=True)

def click(kc, button):
    "What a front end sends when a button is pressed"
    data = dict(method='custom', content=dict(event='click'))
    kc.shell_channel.send(kc.session.msg('comm_msg', dict(comm_id=stored(kc, button).strip("'"), data=data)))

@pytest.mark.slow
def test_stop_on_every_kernel(other_kernel, folder):
    version,km,kc,cwd = other_kernel
    for c in cells(folder, 500): assert reply(kc, send(kc, c))['status']=='ok'
    assert reply(kc, send(kc, 'import ipykernel'))['status']=='ok' and stored(kc, 'ipykernel.__version__')==repr(version)
    m = send(kc, '%qlora_train -o blocking')
    wait_for('log', cwd, 3)
    km.interrupt_kernel()
    assert reply(kc, m)['status']=='ok'
    assert stored(kc, 'blocking.status')=="'stopped'" and stored(kc, 'blocking.checkpoints')==f"['checkpoint-{stored(kc, 'blocking.step')}']"
    assert reply(kc, send(kc, '%qlora_train -o behind --background'))['status']=='ok'
    while int(stored(kc, 'behind.step'))<2: time.sleep(.1)
    click(kc, 'behind.watchers[0].button.model_id')
    assert reply(kc, send(kc, 'behind._done.wait(60)'))['status']=='ok'
    assert stored(kc, 'behind.status')=="'stopped'" and stored(kc, 'behind.checkpoints')==f"['checkpoint-{stored(kc, 'behind.step')}']"

# ---- going on, in a kernel that knows nothing of the run

def test_a_fresh_kernel_goes_on_from_the_folder(kernel, folder, tmp_path):
    km,kc = kernel
    for c in cells(folder, 300): assert reply(kc, send(kc, c))['status']=='ok'
    m = send(kc, '%qlora_train -o run')
    wait_for('checkpoint', tmp_path, 0)
    wait_for('log', tmp_path, 2)
    km.interrupt_kernel()
    assert reply(kc, m)['status']=='ok'
    at = int(stored(kc, 'run.step'))
    km.restart_kernel(now=True)
    kc.wait_for_ready(timeout=120)
    assert reply(kc, send(kc, '%load_ext qlora_nb'))['status']=='ok'
    m = send(kc, '%qlora_train --resume -o again')
    wait_for('log', tmp_path, at+6)
    km.interrupt_kernel()
    assert reply(kc, m)['status']=='ok' and int(stored(kc, 'again.step'))>at
    steps = [json.loads(l)['step'] for l in events(tmp_path) if '"loss"' in l]
    assert steps==list(range(1, len(steps)+1))
    listed = reply(kc, send(kc, 'listed = get_ipython().run_line_magic("qlora_runs", "")'))
    assert listed['status']=='ok' and '%qlora_train --resume run' in stored(kc, 'str(listed)')
