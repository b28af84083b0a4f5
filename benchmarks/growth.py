"""What a long run leaves behind, and what its panel sends: 10,000 steps of the smallest model, and a kernel with one panel and with twenty.

Two runs follow each other in one process, with a loss logged at every step and at every tenth. Memory, files and the page are measured on the way.
Then a kernel trains in the background, and the bytes on its output channel are counted: with the panel of the training cell alone, and after twenty
`%qlora_status`. `events.jsonl` is the record of the losses, so it grows by one line for each; all else has a bound, and a figure above it ends
the program with status 1.

    python benchmarks/growth.py [--steps 10000] [--seconds 10]"""
import argparse, os, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests'))
CELL = '''model: {model}
data: {{train: rows}}
quantization: {{bits: none}}
lora: {{r: 1, target_modules: [q_proj]}}
training: {{per_device_train_batch_size: 1, gradient_accumulation_steps: 1, max_length: 64, max_steps: {steps}, logging_steps: {every}, save_steps: {save},
  save_minutes: 0, save_total_limit: 99, preflight: false}}
output: {{output_dir: {out}}}
'''
LIMITS = {'memory, MiB per 1,000 logged losses': 2., 'events.jsonl, bytes per logged loss': 400, 'trainer_state.json, KB': 3., 'checkpoint, last / first': 1.02,
    'saved output, KB': 20., 'redraw, ms': 20., 'output channel, KB/s': 20.}

class Figures:
    "Prints figures, and remembers which are above their limit"
    def __init__(self): self.above = []

    def __call__(self, where, name, value):
        limit = LIMITS[name]
        bad = not value<=limit
        if bad: self.above.append(f'{where}: {name}')
        print(f'{where:<44} {name:<40} {value:>9.2f}   at most {limit:g}{"   ABOVE" if bad else ""}', flush=True)

def size(folder): return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())

def long_run(figures, model, out, steps, every):
    "Train, and measure on the way"
    import psutil, tiny
    from qlora_nb.render import page
    from qlora_nb.training.report import run_html
    from qlora_nb.training.start import train
    memory,page_size = {},0
    def watch(run):
        if run.step and run.step%(steps//10)==0 and run.step not in memory: memory[run.step] = psutil.Process().memory_info().rss
    begun = time.monotonic()
    text = CELL.format(model=model, out=out, steps=steps, every=every, save=steps//10)
    run = train(text, dict(rows=tiny.rows(64)), name=f'every{every}', on_change=watch)
    where = f'{steps:,} steps, a loss at every {every}'
    print(f'{where}: {time.monotonic()-begun:.0f} s, {run.own_seconds/run.seconds:.1%} of them in our own code', flush=True)
    marks = sorted(memory)
    losses = (marks[-1]-marks[2])/every # The first marks hold what is allocated once
    figures(where, 'memory, MiB per 1,000 logged losses', (memory[marks[-1]]-memory[marks[2]])/2**20/losses*1000)
    figures(where, 'events.jsonl, bytes per logged loss', (run.folder/'events.jsonl').stat().st_size/len(run.losses))
    first,last = (run.folder/name for name in (run.checkpoints[0], run.checkpoints[-1]))
    figures(where, 'trainer_state.json, KB', (last/'trainer_state.json').stat().st_size/1e3)
    figures(where, 'checkpoint, last / first', size(last)/size(first))
    figures(where, 'saved output, KB', len(page(run_html(run)))/1e3)
    if every!=1: return
    for n in (100, 1000, 10_000):
        run.losses = [(i+1, 3-i/n) for i in range(n)]
        begun = time.perf_counter()
        for _ in range(10): run_html(run)
        figures(f'{n:,} losses', 'redraw, ms', (time.perf_counter()-begun)*100)

def received(client, seconds):
    "Bytes per second on the output channel"
    socket,end,count = client.iopub_channel.socket,time.monotonic()+seconds,0
    while (left := end-time.monotonic())>0:
        if socket.poll(left*1000): count += sum(map(len, socket.recv_multipart()))
    return count/seconds

def panels(figures, model, out, seconds):
    "The output of a kernel that trains in the background"
    import tiny
    from jupyter_client.manager import start_new_kernel
    manager,client = start_new_kernel(cwd=str(out))
    def run(code):
        reply = client.execute_interactive(code, timeout=120, output_hook=bool)['content']
        if reply['status']!='ok': raise SystemExit(f'{code}: {reply["evalue"]}')
    try:
        text = CELL.format(model=model, out=out, steps=1_000_000, every=1, save=1_000_000)
        for code in ('%load_ext qlora_nb', f'rows = {tiny.rows(64)!r}', f'%%qlora_config\n{text}', '%qlora_train --background -o run',
            'import time\nwhile len(run.losses)<400: time.sleep(.1)'): run(code)
        figures('one panel', 'output channel, KB/s', received(client, seconds)/1e3)
        for _ in range(20): run('%qlora_status')
        figures('after twenty more', 'output channel, KB/s', received(client, seconds)/1e3)
        run('run.stop()\nrun._over.wait(60)')
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=10_000)
    parser.add_argument('--seconds', type=int, default=10, help='of each count on the output channel')
    args = parser.parse_args()
    os.environ['HF_HUB_OFFLINE'] = '1'
    import tiny
    figures = Figures()
    with tempfile.TemporaryDirectory() as out:
        model = tiny.model_folder(Path(out)/'model', hidden=64, layers=1)
        panels(figures, model, out, args.seconds)
        for every in (1, 10): long_run(figures, model, out, args.steps, every)
    if figures.above: raise SystemExit('above the limit: '+'; '.join(figures.above))

if __name__=='__main__': main()
