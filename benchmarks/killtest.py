"""Kill a run at random moments, resume from its folder, and compare with a run that was never killed.

Each trial starts a process that trains a small 4-bit Llama, and ends it at a moment drawn uniformly over the whole wall time of an undisturbed
process: imports, loading, trial batch, steps, checkpoints, validation and the final save included. The ways to end it take turns: SIGKILL, SIGTERM,
interrupt, and SIGKILL as soon as a checkpoint, or a validation, is under way. Then new processes resume from the folder alone until the run is finished.
The SHA-256 of the final adapter and of the optimizer state, and every logged loss, each step once, must be those of the undisturbed run.

    python benchmarks/killtest.py [--kills 20] [--seed 0]"""
import argparse, hashlib, json, os, random, shutil, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

root = Path(__file__).resolve().parent.parent
KINDS = ('SIGKILL', 'SIGTERM', 'interrupt', 'SIGKILL in save', 'SIGKILL in validation')
CELL = '''model: {model}
data: {{train: rows, validation: held}}
lora: {{lora_dropout: 0.1}}
training: {{per_device_train_batch_size: 2, gradient_accumulation_steps: 2, max_length: 64, learning_rate: 5e-3, num_train_epochs: 4, save_steps: 3, save_minutes: 0}}
output: {{output_dir: {out}}}
'''

def work(model, out, resume):
    "One process: train, or go on; `phase` tells the parent what is under way"
    import torch
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler) # A shell that starts this in its background has it ignored
    sys.path.insert(0, str(root/'tests'))
    import tiny
    from qlora_nb.training import start
    phase,ns = Path(out)/'phase',dict(rows=tiny.rows(34), held=tiny.rows(40, 100))
    def watch(run): phase.write_text(run.status)
    if not resume: return start.train(CELL.format(model=model, out=out), ns, name='run', on_change=watch)
    if (Path(out)/'run'/'adapter').is_dir() and json.loads((Path(out)/'run'/'run.json').read_text())['status']=='finished': return None
    return start.resume(str(Path(out)/'run'), on_change=watch)

def process(model, out, resume=False):
    cmd = [sys.executable, __file__, '--model', model, '--work', str(out)]+['--resume']*resume
    env = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    return subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=(Path(out)/'stderr').open('a'), env=env)

def result(folder):
    "Hash of the adapter, hash of the optimizer's tensors, training losses, validation losses"
    import torch
    from qlora_nb.store.checkpoints import checkpoints, curves
    state = torch.load(checkpoints(folder)[-1]/'optimizer.pt', weights_only=True)['state']
    tensors = [v.numpy().tobytes() for _,s in sorted(state.items()) for _,v in sorted(s.items()) if torch.is_tensor(v)]
    def sha(b): return hashlib.sha256(b).hexdigest()
    return sha((folder/'adapter'/'adapter_model.safetensors').read_bytes()),sha(b''.join(tensors)),*curves(folder)

def end(p, out, kind, at):
    "End a process as `kind` says, and tell in which phase it was"
    until,phase = time.time()+at,Path(out)/'phase'
    while time.time()<until and p.poll() is None: time.sleep(.005)
    wanted = dict(save='saving', validation='evaluating').get(kind.split()[-1])
    while wanted and p.poll() is None and (phase.read_text() if phase.exists() else '')!=wanted: time.sleep(.001)
    was = 'over' if p.poll() is not None else (phase.read_text() if phase.exists() else '') or 'imports'
    if p.poll() is None: p.send_signal(dict(SIGTERM=signal.SIGTERM, interrupt=signal.SIGINT).get(kind, signal.SIGKILL))
    p.wait(120)
    return was

def trial(model, kind, at, whole):
    "One kill, and as many processes as it takes"
    from qlora_nb.store.checkpoints import checkpoints, events
    with tempfile.TemporaryDirectory() as out:
        was,folder = end(process(model, out), out, kind, at),Path(out)/'run'
        have,fresh = checkpoints(folder) if folder.exists() else [],False
        if not have and was!='over':
            fresh = True # nothing was saved yet, so there is nothing to go on from: the run begins again
            shutil.rmtree(folder, ignore_errors=True)
        done = process(model, out, not fresh).wait(300)
        if done: return dict(was=was, at=at, kind=kind, error=(Path(out)/'stderr').read_text()[-400:])
        steps = Counter(e['step'] for e in events(folder) if e['event']=='log' and 'loss' in e)
        once = all(n==1 for n in steps.values())
        got = result(folder)
        return dict(kind=kind, at=at, was=was, checkpoint='start' if fresh else have[-1].name if have else '', adapter=got[0]==whole[0], optimizer=got[1]==whole[1],
            losses=once and got[2]==whole[2], validation=got[3]==whole[3])

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--kills', type=int, default=20)
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--model', help=argparse.SUPPRESS)
    ap.add_argument('--work', help=argparse.SUPPRESS)
    ap.add_argument('--resume', action='store_true', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.work: return work(a.model, a.work, a.resume)
    sys.path[:0] = [str(root), str(root/'tests')]
    import tiny
    rng = random.Random(a.seed)
    with tempfile.TemporaryDirectory() as base:
        model,out = tiny.model_folder(Path(base)/'model'),Path(base)/'whole'
        out.mkdir()
        begun = time.time()
        if process(model, out).wait(600): raise SystemExit((out/'stderr').read_text()[-2000:])
        wall,whole = time.time()-begun,result(out/'run')
        print(f'seed {a.seed}; undisturbed: {wall:.1f} s, {len(whole[2])} steps, {len(whole[3])} validations, adapter {whole[0][:12]}, optimizer {whole[1][:12]}', flush=True)
        print(f'{"how":22} {"after":>7}  {"while":12} {"resumed from":14} adapter optimizer losses validation', flush=True)
        bad = i = 0
        while i<a.kills:
            r = trial(model, KINDS[i%len(KINDS)], rng.uniform(0, wall)*(.6 if i%len(KINDS)>2 else 1), whole)
            i += r['was']!='over' # a process that was quicker than the undisturbed one is not a kill, though it is compared
            equal = {k: r.get(k) for k in ('adapter', 'optimizer', 'losses', 'validation')}
            bad += not all(equal.values())
            words = ' '.join(f'{"equal" if v else "DIFFERS":{len(k)}}' for k,v in equal.items())
            print(f'{r["kind"]:22} {r["at"]:5.1f} s  {r["was"]:12} {r.get("checkpoint", ""):14} {words}', r.get('error', ''), flush=True)
    print(f'{a.kills} kills: {a.kills-bad} runs equal to the undisturbed one, {bad} not')
    raise SystemExit(bool(bad))

if __name__=='__main__': main()
