"Run the lessons of the course in a scratch folder; say how long each took and how many statements it asserted: python tools/course.py [07 10 ...]"
import re, sys, time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

COURSE = Path(__file__).parent.parent/'nbs'/'course'

def lessons(wanted=()): # Beginnings of names; all lessons when there are none
    "The notebooks, in order"
    return [p for p in sorted(COURSE.glob('[0-9]*.ipynb')) if not wanted or p.name.startswith(tuple(wanted))]

def spent():
    "CPU seconds of the processes that have ended"
    r = getrusage(RUSAGE_CHILDREN)
    return r.ru_utime+r.ru_stime

def run(path, timeout=900): # → seconds, CPU seconds, statements, error
    "Execute one lesson"
    nb,error = nbformat.read(path, 4),''
    start,cpu = time.perf_counter(),spent()
    with TemporaryDirectory() as scratch:
        km = AsyncKernelManager(kernel_name='python3', transport='ipc', connection_file=f'{scratch}/kernel.json')
        client = NotebookClient(nb, km=km, timeout=timeout, resources=dict(metadata=dict(path=scratch)))
        try: client.execute(cleanup_kc=True)
        except CellExecutionError as e: error = f'{e.ename}: {e.evalue}'
    said = ''.join(str(o) for c in nb.cells if c.cell_type=='code' for o in c.outputs)
    counted = re.search(r'(\d+) statements, each of them asserted', said)
    return time.perf_counter()-start,spent()-cpu,int(counted[1]) if counted else 0,error

def main(wanted):
    total,failed = [0., 0.],0
    for p in lessons(wanted):
        *seconds,claims,error = run(p)
        total,failed = [a+b for a,b in zip(total, seconds)],failed+bool(error)
        print(f'{p.stem:<32}{said(seconds)}  '+(f'✗ {error}' if error else f'{claims:3} statements asserted'), flush=True)
    print(f"{'all':<32}{said(total)}"+(f'  {failed} failed' if failed else ''))
    return failed

def said(seconds): return '{:6.0f} s, {:5.0f} s of CPU'.format(*seconds)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
