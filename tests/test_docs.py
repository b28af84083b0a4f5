"The site's menu names every notebook in reading order, the index every lesson, and prose uses the field's words"
import re, sys
import nbformat, pytest, yaml
from conftest import files, root

sys.path.insert(0, str(root/'tools'))
import house

def leaves(o): return [o] if isinstance(o, str) else [x for v in (o.values() if isinstance(o, dict) else o) for x in leaves(v)]

def test_menu_names_every_notebook():
    nav = leaves(yaml.safe_load((root/'docs'/'mkdocs.yml').read_text())['nav'])
    there = {f.relative_to('nbs').as_posix() for f in files('nbs') if f.suffix=='.ipynb'}
    assert len(nav)==len(set(nav)) and set(nav)==there

def test_the_reference_is_read_from_the_ground_up():
    "A page stands after every page that its module imports"
    nav = yaml.safe_load((root/'docs'/'mkdocs.yml').read_text())['nav']
    pages = leaves(next(o for o in nav if 'Reference' in o))
    place = {'qlora_nb.'+page.removesuffix('.ipynb').replace('/', '.'): n for n,page in enumerate(pages)}
    edges = house.graph().items()
    assert not [(a, b) for a,bs in edges for b in bs if a in place and b in place and place[b]>place[a]]

NOT_OURS = re.compile(r"\bprocessors?\b|graphics card|\bknobs?\b|number types?\b|learned tokens?|likely meant|by heart|go(?:es)? on from|made-up|\brent\b(?= on|[,.])", re.I)
PROSE = [f for f in files('nbs') if f.suffix=='.ipynb' and f.parent.name in ('nbs', 'course', 'examples', 'teach')]

@pytest.mark.parametrize('path', PROSE, ids=str)
def test_prose_uses_the_words_of_the_field(path):
    text = '\n'.join(c.source for c in nbformat.read(root/path, 4).cells if c.cell_type=='markdown')
    assert not NOT_OURS.findall(text)
    assert path.parent.name!='course' or not re.findall(r'\bcards?\b', text)

def test_index_names_every_lesson():
    text = ''.join(c.source for c in nbformat.read(root/'nbs'/'course'/'index.ipynb', 4).cells)
    assert not [p.name for p in (root/'nbs'/'course').glob('[0-9]*.ipynb') if f']({p.name})' not in text]

def test_colab_opens_what_github_has(monkeypatch):
    monkeypatch.syspath_prepend(root/'docs')
    from colab import link
    at = 'https://colab.research.google.com/github/someone/qlora_nb/blob/main/nbs/course/04_nf4.ipynb'
    for repo in ('https://github.com/someone/qlora_nb', 'https://github.com/someone/qlora_nb.git', 'https://github.com/someone/qlora_nb/'): assert f'href="{at}"' in link(repo, 'course/04_nf4.ipynb')
    assert not any((link('', 'course/04_nf4.ipynb'), link(None, 'index.ipynb'), link('https://example.org/x', 'course/04_nf4.ipynb'), link(repo, 'memory.ipynb')))

def test_the_start_page_leads_to_the_planner_where_its_page_was_built(monkeypatch):
    from types import SimpleNamespace
    monkeypatch.syspath_prepend(root/'docs')
    import colab
    def shown(path): return colab.on_page_content('<h1>', SimpleNamespace(file=SimpleNamespace(src_uri=path)), SimpleNamespace(repo_url=None), [])
    for built in (True, False):
        monkeypatch.setattr(colab.os.path, 'isdir', lambda path: built)
        assert ('href="planner/index.html"' in shown('index.ipynb'))==built and shown('ui/cli.ipynb')=='<h1>'
