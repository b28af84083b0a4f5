"""What the run folder, checkpoints, panel and trial batch cost: time inside our code as a share of the wall time, and paired runs with and without.

A pair is two processes one after the other, in alternating order: `%qlora_train` by default, and the same training with nothing saved, tried or shown
on the way (no trial batch, no checkpoint before the last, no panel). The ratio of their wall times says how much longer a person waits. On a busy machine its
spread is larger than what it measures, so the time measured inside our own code stands beside it.

    python benchmarks/overhead.py [--steps 60] [--pairs 5]"""
import argparse, json, os, statistics, subprocess, sys, tempfile

CELL = '''%%qlora_config
model: demo
data: {{train: demo}}
training: {{per_device_train_batch_size: 8, gradient_accumulation_steps: 1, max_length: 1024, learning_rate: 1e-3, max_steps: {steps}, {more}}}
output: {{output_dir: {out}}}'''

def one(kind, steps, out):
    "One run in a shell of its own; prints its figures"
    from IPython.core.interactiveshell import InteractiveShell
    from qlora_nb.store.checkpoints import events
    from qlora_nb.training.start import train
    more = 'save_minutes: 2' if kind=='full' else 'save_minutes: 0, save_steps: 100000, preflight: false'
    cell = CELL.format(steps=steps, more=more, out=out)
    if kind=='full':
        ip = InteractiveShell()
        ip.run_line_magic('load_ext', 'qlora_nb')
        ip.run_cell(cell).raise_error()
        ip.run_cell('%qlora_train -o run').raise_error()
        run = ip.user_ns['run']
    else: run = train(cell, name='run')
    said = {e['event']: e['time'] for e in events(run.folder)}
    print()
    print(json.dumps(dict(wall=said['finished']-said['train_begin'], own=run.own_seconds, trial=run.trial_seconds, checkpoints=len([e for e in events(run.folder) if e['event']=='checkpoint']))))

def run(kind, steps):
    with tempfile.TemporaryDirectory() as out:
        o = subprocess.run([sys.executable, __file__, '--one', kind, '--steps', str(steps), '--out', out], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE='1'))
        if o.returncode: raise SystemExit(o.stderr[-3000:])
        return json.loads(o.stdout.splitlines()[-1])

def spread(xs): return f'{statistics.median(xs):.3f} ({min(xs):.3f} to {max(xs):.3f})'

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=60)
    ap.add_argument('--pairs', type=int, default=5)
    ap.add_argument('--one', choices=('full', 'bare'), help=argparse.SUPPRESS)
    ap.add_argument('--out', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return one(a.one, a.steps, a.out)
    pairs = []
    for i in range(a.pairs):
        pairs.append({k: run(k, a.steps) for k in (('full', 'bare') if i%2==0 else ('bare', 'full'))})
        f,b = pairs[-1]['full'],pairs[-1]['bare']
        print(f'pair {i+1}: full {f["wall"]:.1f} s, of it {f["own"]:.2f} s inside our code ({f["own"]/f["wall"]:.2%}, {f["checkpoints"]} checkpoints) and {f["trial"]:.2f} s in the trial batch; bare {b["wall"]:.1f} s', flush=True)
    print(f'{a.pairs} pairs of {a.steps} steps; median (lowest to highest)')
    print('share of the wall time inside our code, checkpoints included:', spread([p['full']['own']/p['full']['wall'] for p in pairs]))
    print('share of the trial batch, a forward and backward pass of the longest batch:', spread([p['full']['trial']/p['full']['wall'] for p in pairs]))
    print('wall time, full / bare:', spread([p['full']['wall']/p['bare']['wall'] for p in pairs]))

if __name__=='__main__': main()
