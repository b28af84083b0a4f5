"How many GPUs a published row was measured on, and how they share the run: for the benchmarks of memory and time"
from qlora_nb.errors import QLoRAError

def is_number(value): return type(value) in (int, float) and 0<value<float('inf')

def gpus_of(row): # → number of GPUs; raises QLoRAError
    "How many GPUs a row was measured on, each of them"
    found = next((row[key] for key in ('n_gpus', 'gpus', 'num_gpus') if row.get(key) is not None), 1)
    try: n = int(found)
    except (TypeError, ValueError): n = 0
    if isinstance(found, bool) or n!=found and str(n)!=found or n<1: raise QLoRAError(f'the number of GPUs must be a positive integer, got {found!r}')
    return n

SHARED = (('zero', ''), ('deepspeed', ''), ('device_map', ''), ('pipeline', ''), ('tensor parallel', ''), ('no_shard', 'ddp'), ('ddp', 'ddp'), ('distributeddataparallel', 'ddp'),
    ('fsdp', 'fsdp'), ('full_shard', 'fsdp'), ('torchtune', 'fsdp'), ('lit', 'fsdp')) # torchtune and LitGPT share in no other way

def sharding_of(row): # → ddp or fsdp; raises QLoRAError
    "How several GPUs share a run, from its own key or from the framework"
    said = f"{row.get('sharding') or ''} {row.get('framework') or ''}".lower()
    word,how = next((pair for pair in SHARED if pair[0] in said), ('', ''))
    if how: return how
    n = gpus_of(row)
    if word: raise QLoRAError(f'ran on {n} GPUs that share by {word}, which is not planned')
    raise QLoRAError(f'ran on {n} GPUs, and the row does not say how they share a run')
