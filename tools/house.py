"The house in figures: density of the code, size of the modules, and the import graph: python tools/house.py"
import ast, io, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = 'qlora_nb'
FLOORS = ( # A module imports from its own folder and from folders further down
    ('teach',), ('ui',), ('results',), ('training',), ('planning',), ('speed',), ('simulation',), ('config',), ('tokens',), ('data', 'methods'), ('tasks',), ('screens',), ('facts',), ('store',),
    ('ground',))
LIMITS = dict(rooms=12, lines=300, mean_tokens=12, module_tokens=14, long_percent=3, tuples=1, lambdas=6)
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}

def modules(root=ROOT): # → {dotted name: path}
    "Every module of the package, except what nbdev generates"
    found = {}
    for path in sorted((root/PACKAGE).rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        name = '.'.join(parts[:-1] if parts[-1]=='__init__' else parts)
        if path.name!='_modidx.py': found[name] = path
    return found

def folder(name): # `qlora_nb.planning.fit` → `planning`; modules beside the folders belong to the ground
    parts = name.split('.')
    return parts[1] if len(parts)==3 else 'ground'

def public(root=ROOT): # → {public verb: module it lives in}
    "The lazy names of the package: `from qlora_nb import plan` is an import of its module"
    path = root/PACKAGE/'__init__.py'
    assigned = [o for o in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(o, ast.Assign)] if path.is_file() else []
    homes = next((o.value for o in assigned if getattr(o.targets[0], 'id', '')=='_homes'), None)
    return {o.arg: f'{PACKAGE}.{o.value.value}' for o in homes.keywords} if homes else {}

def imported(tree, name, path): # → dotted names, imports inside functions included
    "What a module imports"
    package = name if path.name=='__init__.py' else name.rpartition('.')[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        if not isinstance(node, ast.ImportFrom): continue
        base = node.module or ''
        if node.level:
            above = package.split('.')[:len(package.split('.'))-node.level+1]
            base = '.'.join([*above, *([node.module] if node.module else [])])
        yield base
        yield from (f'{base}.{alias.name}' for alias in node.names)

def graph(root=ROOT): # → {module: modules it imports}
    "The import graph"
    found = modules(root)
    verbs,edges = {f'{PACKAGE}.{verb}': home for verb,home in public(root).items()},{}
    for name,path in found.items():
        names = imported(ast.parse(path.read_text(encoding='utf-8')), name, path)
        seen = {verbs.get(o, o) for o in names}
        edges[name] = sorted(o for o in seen if o in found and o not in (name, PACKAGE))
    return edges

def forbidden(edges): # → [(importing, imported)]
    "Arrows that point up, or sideways into another folder"
    floor = {f: n for n,folders in enumerate(FLOORS) for f in folders}
    floor |= {folder(name): -1 for name in edges if folder(name) not in floor} # Without a floor: nobody may import it
    entry = (PACKAGE, f'{PACKAGE}.__main__')
    arrows = [(a, b) for a,bs in edges.items() for b in bs if a not in entry]
    return [(a, b) for a,b in arrows if folder(a)!=folder(b) and floor[folder(a)]>=floor[folder(b)]]

def circles(edges): # → groups of modules that import each other
    "Strongly connected components of more than one module"
    reach = {name: set(bs) for name,bs in edges.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]: reach[name] |= reach[middle]
    rings = {frozenset(o for o in reach if o in reach[name] and name in reach[o]) for name in reach if name in reach[name]}
    return sorted(map(sorted, rings))

def docstring_lines(tree):
    kinds = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    starts = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None]
    return {n for o in starts for n in range(o.lineno, o.end_lineno+1)}

def count(path): # → dict
    "Figures of one module; docstrings and comments are not code, and blank lines are no lines"
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    prose,tokens = docstring_lines(tree),{}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type not in SKIPPED and line not in prose: tokens[line] = tokens.get(line, 0)+1
    lines = [line for line in text.split('\n') if line.strip()]
    nodes = list(ast.walk(tree))
    wide = [o for o in nodes if isinstance(o, ast.Assign) and isinstance(o.targets[0], ast.Tuple) and len(o.targets[0].elts)>=4]
    built = [o for o in nodes if isinstance(o, ast.Call) and makes_a_class(o)]
    return dict(length=len(text.splitlines()), lines=len(lines), long=sum(len(line)>120 for line in lines), code=len(tokens), tokens=sum(tokens.values()),
        tuples=len(wide), lambdas=sum(isinstance(o, ast.Lambda) for o in nodes), built=len(built), patched=len(patched(tree)))

def makes_a_class(call): # `type(name, bases, body)` or `types.new_class(…)`
    name = getattr(call.func, 'id', getattr(call.func, 'attr', ''))
    return name=='new_class' or name=='type' and (len(call.args)==3 or any(isinstance(a, ast.Starred) for a in call.args))

def patched(tree): # → assignments such as `Run.event = _event`
    "Attributes of a class of this module that are set from outside it"
    classes = {o.name for o in tree.body if isinstance(o, ast.ClassDef)}
    def theirs(target): return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in classes
    def targets(node):
        whole = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [t for target in whole for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [o for o in tree.body if isinstance(o, (ast.Assign, ast.AnnAssign)) and any(map(theirs, targets(o)))]

def measure(root=ROOT): # → dict of figures
    "Figures of the package"
    found,edges = modules(root),graph(root)
    each = {name: count(path) for name,path in found.items()}
    def total(key): return sum(o[key] for o in each.values())
    def per_thousand(key): return round(1000*total(key)/total('lines'), 1)
    density = {name: o['tokens']/max(1, o['code']) for name,o in each.items() if o['length']>40}
    rooms = {}
    for name,path in found.items():
        if path.name!='__init__.py': rooms[folder(name)] = rooms.get(folder(name), 0)+1
    return dict(modules=len(found), rooms=rooms, circles=circles(edges), forbidden=forbidden(edges), mean_tokens=round(total('tokens')/total('code'), 2),
        long_percent=round(100*total('long')/total('lines'), 2), tuples=per_thousand('tuples'), lambdas=per_thousand('lambdas'),
        built=[k for k,o in each.items() if o['built']], patched=[k for k,o in each.items() if o['patched']], dense={k: round(v, 1) for k,v in density.items() if v>LIMITS['module_tokens']},
        large={k: o['length'] for k,o in each.items() if o['length']>LIMITS['lines']})

def faults(figures, root=ROOT): # → sentences
    "What is beyond the limits"
    floors = {f for floor in FLOORS for f in floor}
    for a,b in figures['forbidden']: yield f'{a} imports {b}, which is no lower floor'
    for ring in figures['circles']: yield 'imports in a circle: '+', '.join(ring)
    for name,rooms in figures['rooms'].items():
        if name not in floors: yield f'the folder {name} has no floor in tools/house.py'
        if rooms>LIMITS['rooms']: yield f'the folder {name} has {rooms} rooms, at most {LIMITS["rooms"]}'
    for name,length in figures['large'].items(): yield f'{name} has {length} lines, at most {LIMITS["lines"]}'
    for name,tokens in figures['dense'].items(): yield f'{name} has {tokens} tokens a code line, at most {LIMITS["module_tokens"]}'
    for name in figures['built']: yield f'{name} builds a class by a call'
    for name in figures['patched']: yield f'{name} sets attributes of a class from outside'
    for name in ('mean_tokens', 'long_percent', 'tuples', 'lambdas'):
        if figures[name]>LIMITS[name]: yield f'{name} is {figures[name]}, at most {LIMITS[name]}'
    for name in sorted(set(public(root)) & {p.stem for p in (root/PACKAGE).iterdir()}): yield f'{PACKAGE}/{name}.py bears the name of a public verb'

def main():
    figures = measure()
    for name,value in figures.items(): print(f'{name:<13}{value}')
    wrong = list(faults(figures))
    if wrong: sys.exit('\n'.join(wrong))

if __name__=='__main__': main()
