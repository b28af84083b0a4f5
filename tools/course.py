"Run the lessons of the course in a scratch folder; say how long each took and how many statements it asserted: python tools/course.py [07 10 ...]"
import re, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

COURSE = Path(__file__).parent.parent/'nbs'/'course'

def lessons(wanted=()): # Beginnings of names; all lessons when there are none
    "The notebooks, in order"
    return [p for p in sorted(COURSE.glob('[0-9]*.ipynb')) if not wanted or p.name.startswith(tuple(wanted))]

def run(path, timeout=900): # → seconds, statements, error
    "Execute one lesson"
    nb = nbformat.read(path, 4)
    start = time.perf_counter()
    with TemporaryDirectory() as scratch:
        km = KernelManager(kernel_name='python3', transport='ipc')
        try: NotebookClient(nb, km=km, timeout=timeout, resources=dict(metadata=dict(path=scratch))).execute()
        except CellExecutionError as e: return time.perf_counter()-start,0,f'{e.ename}: {e.evalue}'
    said = ''.join(str(o) for c in nb.cells if c.cell_type=='code' for o in c.outputs)
    counted = re.search(r'(\d+) statements, each of them asserted', said)
    return time.perf_counter()-start,int(counted[1]) if counted else 0,''

def main(wanted):
    total,failed = 0.,0
    for p in lessons(wanted):
        seconds,claims,error = run(p)
        total,failed = total+seconds,failed+bool(error)
        print(f'{p.stem:<32}{seconds:7.0f} s  '+(f'✗ {error}' if error else f'{claims:3} statements asserted'), flush=True)
    print(f"{'all':<32}{total:7.0f} s"+(f'  {failed} failed' if failed else ''))
    return failed

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
