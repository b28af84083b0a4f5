"What the page asks of the planner: a config cell goes in, the page of its plan comes out, both as plain values"
import json
from pathlib import Path

from qlora_nb.config.cell import parse
from qlora_nb.config.words import as_text
from qlora_nb.data.names import NO_DATA
from qlora_nb.errors import QLoRAError, nearest
from qlora_nb.facts.checkpoint import check_name
from qlora_nb.planning.planner import plan

def _beside(name): return Path(__file__).with_name(name).read_text(encoding='utf-8')

PRESETS = json.loads(_beside('presets.json')) # Hub ids and names that plan offline
IN_LOWER_CASE = {'demo', *(name.lower() for name in PRESETS)}
UNNAMED = 'my-model' # What a pasted config.json is called that gives no name

# ---- models that are no presets

def keep(config:dict, name:str='')->str: # What config.json holds; the name to type under `model`
    "Put a config.json where the planner finds it: in a folder of that name"
    given = name or config.get('_name_or_path')
    name = given if isinstance(given, str) and given else UNNAMED
    check_name(name)
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'config.json').write_text(json.dumps(config), encoding='utf-8')
    return name

def is_known(name:str)->bool:
    "Whether the planner has the shape of a model; raises QLoRAError where no model can have that name"
    if name.lower() in IN_LOWER_CASE or (Path(name)/'config.json').is_file(): return True
    check_name(name, PRESETS)
    return False

def read_json(text:str)->dict: # What config.json holds
    "A config.json that was pasted; raises QLoRAError where it is none"
    try: found = json.loads(text)
    except ValueError as e: raise QLoRAError(f'this begins as a config.json does, but it is not JSON: {e}') from e
    if isinstance(found, dict) and 'model_type' in found: return found
    raise QLoRAError('this JSON has no `model_type`: it is not the config.json of a model')

# ---- the plan

_4BIT = ('quantization.bnb_4bit_quant_type', 'quantization.bnb_4bit_use_double_quant')

def with_what_follows(config, change):
    "A change, and the keys that would contradict it"
    given = [key for key,source in config.sources.items() if source!='default']
    gone = [key for key in given if 'method' in change and key.startswith((f'{config.method}.', 'quantization.'))]
    if str(change.get('quantization.bits', 4))!='4': gone += _4BIT
    return dict.fromkeys(gone) | change

def config_of(cell, change):
    "The config of a cell, and the cell with the changed keys"
    config = parse(cell)
    if not change: return config,cell
    config = config.with_(**with_what_follows(config, change))
    return config,config.to_yaml()

def drawn(config, cell, tokens):
    "The answer to a config: its page, or the model whose config.json is needed first"
    shown = {key: as_text(value) for key,value in config.flat.items()}
    notes = [note for note in config.notes if NO_DATA not in note] # Here that goes without saying
    found = dict(cell=cell, shown=shown, model=config.model, notes=notes)
    if not is_known(config.model): return found | dict(ask=config.model, near=nearest(config.model, PRESETS))
    planned = plan(config, tokens=tokens)
    return found | dict(html=planned._repr_html_(), title=f'{planned.architecture.name} on {planned.device.name}', verdict=planned.verdict)

def answer(
    cell:str, # Text of a config cell
    change:dict|None=None, # Dotted key → value
    kept:dict|None=None, # Model → what its config.json holds
    tokens:int|None=None # In the training rows, where that is known
)->dict:
    "The plan of a cell, with some keys changed"
    for name,config in (kept or {}).items(): keep(config, name)
    return drawn(*config_of(cell, change), tokens)

def paste(
    text:str, # A config.json
    cell:str, # The config cell until now
    **more # For `answer`
)->dict:
    "The plan of a cell for a model whose config.json was pasted"
    config = read_json(text)
    name = keep(config)
    return answer(cell, dict(model=name), **more) | dict(kept={name: config})

# ---- to go on in a notebook

INSTALL = _beside('install.txt').strip() # The line of the README
ROWS = '# data: {train: tickets.jsonl}  # your rows: a file, a Hub id, a variable or `demo`. Without them this config only plans'

def in_notebook(cell)->str: # Text of a code cell
    "A config as a notebook has it, with a line for the data where none is named"
    first,_,rest = cell.strip().partition('\n')
    text = rest if first.startswith('%%') else cell.strip()
    rows = [] if parse(cell).data.train else [ROWS]
    return '\n'.join(['%%qlora_config', text, *rows])

def notebook(
    cell:str # Text of a config cell
)->dict: # A notebook of format 4.5, and a name for its file
    "What is left to do after the plan, as a notebook"
    model = parse(cell).model.split('/')[-1]
    said = f'# QLoRA fine-tuning of {model}\n\nFrom the plan of a config to a trained adapter. Run the cells one after the other.'
    code = [INSTALL, '%load_ext qlora_nb', in_notebook(cell), '%qlora_plan', '%qlora_data', '%qlora_train -o run']
    cells = [dict(cell_type='markdown', id='about', metadata={}, source=said)]
    cells += [dict(cell_type='code', id=f'cell-{n}', metadata={}, execution_count=None, outputs=[], source=text) for n,text in enumerate(code, 1)]
    kernel = dict(display_name='Python 3', language='python', name='python3')
    made = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel, language_info=dict(name='python')), cells=cells)
    return dict(notebook=made, file=f'qlora-{model}.ipynb')

# ---- messages

def copy(cell): return dict(text=in_notebook(cell))

QUESTIONS = dict(answer=answer, paste=paste, notebook=notebook, copy=copy)

def problem(p): return dict(line=p.line, key=p.key, text=str(p), suggestion=p.suggestion)

def replies(
    do:str, # One of `QUESTIONS`
    **asked # Its arguments
)->dict: # Values that `json.dumps` takes; a refusal is an answer too
    "The answer to one message of the page"
    try: return QUESTIONS[do](**asked)
    except QLoRAError as e: return dict(errors=[problem(p) for p in e.errors], headline=e.headline)
