"""Kill a run at random moments, resume it, and compare with a run that was never killed.

Each trial starts a process that trains a small 4-bit Llama with validation, samples, a retention of two checkpoints, the best adapter kept, and a mirror.
It ends that process, and up to two of those that resume, in one of these ways, which take turns:

    operation   SIGKILL before a file operation drawn from all of an undisturbed process: folders, checkpoints, retention, events, adapter, report, mirror
    disk        the same, and the run folder is lost with it, as in Colab: the mirror is all there is
    SIGTERM, interrupt, two interrupts    at a moment drawn over the whole wall time: imports, loading, trial batch, steps, checkpoints, validation, last save
    saving, evaluating      SIGKILL as soon as this is under way

Then a new process finishes the run. The adapter, the optimizer state, every training loss, each step once, and every validation loss must be those of the
undisturbed run, in the run folder and in the mirror. With `--jobs 2`, two processes try to resume each time: one must be refused, and nothing else change.

    python benchmarks/killtest.py [--kills 20] [--seed 0] [--jobs 1]"""
import argparse, hashlib, os, random, shutil, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

root = Path(__file__).resolve().parent.parent
KINDS = ('operation', 'disk', 'SIGTERM', 'operation', 'interrupt', 'two interrupts', 'operation', 'saving', 'disk', 'evaluating')
SAME = ('adapter', 'optimizer', 'losses', 'validation')
REFUSED = 3 # Exit status of a process that found the run in use
CELL = '''model: {model}
data: {{train: rows, validation: held}}
lora: {{lora_dropout: 0.1}}
training: {{per_device_train_batch_size: 2, gradient_accumulation_steps: 2, max_length: 64, learning_rate: 5e-3, num_train_epochs: 4, save_steps: 3, save_minutes: 0,
  save_total_limit: 2, load_best_model_at_end: true}}
tracking: {{sample_prompts: [who is on the mat], sample_steps: 5}}
output: {{output_dir: {out}/runs, mirror_dir: {out}/mirror}}
'''

# ---- one process

def count_operations(out, last):
    "Count the file operations below a folder into a file; before number `last` the process ends"
    n = 0
    names = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.truncate', 'shutil.copyfile')
    def hook(event, args):
        nonlocal n
        if event not in names or not str(args[0]).startswith(str(out)+'/run') and not str(args[0]).startswith(str(out)+'/mirror'): return
        if event=='open' and not args[2] & (os.O_WRONLY | os.O_RDWR): return
        n += 1
        if n==last: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return lambda: n

def work(model, out, resume, last):
    "Train, or resume; `phase` tells the parent what is under way"
    import torch
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler) # A shell that starts this in its background has it ignored
    sys.path.insert(0, str(root/'tests'))
    import tiny
    from qlora_nb.errors import QLoRAError
    from qlora_nb.training import start
    phase,ns,text = Path(out)/'phase',dict(rows=tiny.rows(34), held=tiny.rows(40, 100)),CELL.format(model=model, out=out)
    def watch(run): phase.write_text(run.status)
    done = count_operations(out, last)
    try: start.resume('run', text, ns, on_change=watch) if resume else start.train(text, ns, name='run', on_change=watch)
    except KeyboardInterrupt: start.current()._done.wait(60) # The cell ended; a kernel lives on
    except QLoRAError as e:
        if 'in use by' in str(e): return REFUSED
        if 'is finished' not in str(e): raise
    (Path(out)/'operations').write_text(str(done()))

def process(model, out, resume=False, last=0):
    cmd = [sys.executable, __file__, '--model', model, '--work', str(out), '--last', str(last)]+['--resume']*resume
    env = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    return subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=(Path(out)/'stderr').open('a'), env=env)

# ---- a trial

def result(folder):
    "Hash of the adapter, hash of the optimizer's tensors, training losses, validation losses"
    import torch
    from qlora_nb.store.checkpoints import checkpoints, curves, events
    state = torch.load(checkpoints(folder)[-1]/'optimizer.pt', weights_only=True)['state']
    tensors = [v.numpy().tobytes() for _,s in sorted(state.items()) for _,v in sorted(s.items()) if torch.is_tensor(v)]
    def sha(b): return hashlib.sha256(b).hexdigest()
    steps = Counter(e['step'] for e in events(folder) if e['event']=='log' and 'loss' in e)
    losses,validation = curves(folder)
    return sha((folder/'adapter'/'adapter_model.safetensors').read_bytes()),sha(b''.join(tensors)),(losses, max(steps.values())),validation

def end(p, out, kind, at):
    "End a process as `kind` says, and tell in which phase it was; `operation` and `disk` end themselves"
    phase = Path(out)/'phase'
    def now(): return phase.read_text() if phase.exists() else ''
    if kind in ('operation', 'disk'): p.wait(300)
    until = time.time()+at
    while time.time()<until and p.poll() is None: time.sleep(.005)
    while kind in ('saving', 'evaluating') and p.poll() is None and now()!=kind: time.sleep(.001)
    was = 'over' if p.poll()==0 else now() or 'imports'
    if p.poll() is None: p.send_signal(dict(SIGTERM=signal.SIGTERM).get(kind, signal.SIGINT if 'interrupt' in kind else signal.SIGKILL))
    if kind=='two interrupts':
        time.sleep(.03)
        if p.poll() is None: p.send_signal(signal.SIGINT)
    p.wait(120)
    return was

def has_checkpoint(out):
    from qlora_nb.store.checkpoints import checkpoints
    return any(checkpoints(Path(out)/place/'run') for place in ('runs', 'mirror'))

def lose(out, kind):
    "What goes with the process: the disk, or a run that had saved nothing and begins again"
    if kind=='disk' or not has_checkpoint(out): shutil.rmtree(Path(out)/'runs', ignore_errors=True)
    if not has_checkpoint(out): shutil.rmtree(Path(out)/'mirror', ignore_errors=True)

def finish(model, out, jobs):
    "Processes that resume at once; an error in words where they do not leave one finished run"
    running = [process(model, out, has_checkpoint(out)) for _ in range(jobs if has_checkpoint(out) else 1)]
    ended = sorted(p.wait(300) for p in running)
    if ended not in ([0], [0]*jobs, [0, REFUSED]): return f'ended with {ended}: {(Path(out)/"stderr").read_text()[-400:]}'
    return ''

def trial(model, kinds, rng, undisturbed, jobs):
    "Up to three kills, then processes that finish the run"
    wall,operations,whole = undisturbed
    with tempfile.TemporaryDirectory() as out:
        said = []
        for kind in kinds:
            last = rng.randint(1, operations) if kind in ('operation', 'disk') else 0
            early = .6 if kind in ('saving', 'evaluating') else 0 if last else 1
            (Path(out)/'phase').unlink(missing_ok=True)
            was = end(process(model, out, has_checkpoint(out), last), out, kind, rng.uniform(0, wall)*early)
            said.append(f'{kind} {last or ""} while {was}'.replace('  ', ' '))
            if was!='over': lose(out, kind)
        wrong = finish(model, out, jobs)
        if wrong: return said,{},wrong
        got = {place: result(Path(out)/place/'run') for place in ('runs', 'mirror')}
        return said,{place: [a==b for a,b in zip(found, whole)] for place,found in got.items()},''

def undisturbed_run(model, out):
    begun = time.time()
    if process(model, out).wait(600): raise SystemExit((out/'stderr').read_text()[-2000:])
    return time.time()-begun,int((out/'operations').read_text()),result(out/'runs'/'run')

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--kills', type=int, default=20)
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--jobs', type=int, default=1, help='processes that resume one run at once')
    for hidden in ('--model', '--work'): ap.add_argument(hidden, help=argparse.SUPPRESS)
    ap.add_argument('--last', type=int, default=0, help=argparse.SUPPRESS)
    ap.add_argument('--resume', action='store_true', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.work: raise SystemExit(work(a.model, a.work, a.resume, a.last))
    sys.path[:0] = [str(root), str(root/'tests')]
    import tiny
    rng = random.Random(a.seed)
    with tempfile.TemporaryDirectory() as base:
        model,out = tiny.model_folder(Path(base)/'model'),Path(base)/'whole'
        out.mkdir()
        undisturbed = wall,operations,whole = undisturbed_run(model, out)
        print(f'seed {a.seed}; undisturbed: {wall:.1f} s, {operations} file operations, {len(whole[2][0])} steps, {len(whole[3])} validations, adapter {whole[0][:12]}', flush=True)
        bad = kills = trials = 0
        while kills<a.kills:
            kinds = [KINDS[(kills+i)%len(KINDS)] for i in range(min(rng.randint(1, 3), a.kills-kills))]
            said,equal,wrong = trial(model, kinds, rng, undisturbed, a.jobs)
            kills,trials = kills+len(kinds),trials+1
            differs = [f'{what} of {place} DIFFERS' for place,same in equal.items() for what,good in zip(SAME, same) if not good]
            bad += bool(wrong or differs)
            print(f'{"; ".join(said):110} {wrong or ", ".join(differs) or "all equal, mirror too"}', flush=True)
    print(f'{kills} kills in {trials} runs: {trials-bad} runs equal to the undisturbed one, in folder and mirror; {bad} not')
    raise SystemExit(bool(bad))

if __name__=='__main__': main()
