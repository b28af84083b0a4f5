"The site's menu names every notebook, and the index every lesson"
import nbformat, yaml
from conftest import files, root

def leaves(o): return [o] if isinstance(o, str) else [x for v in (o.values() if isinstance(o, dict) else o) for x in leaves(v)]

def test_menu_names_every_notebook():
    nav = leaves(yaml.safe_load((root/'docs'/'mkdocs.yml').read_text())['nav'])
    there = {f.relative_to('nbs').as_posix() for f in files('nbs') if f.suffix=='.ipynb'}
    assert len(nav)==len(set(nav)) and set(nav)==there

def test_index_names_every_lesson():
    text = ''.join(c.source for c in nbformat.read(root/'nbs'/'course'/'index.ipynb', 4).cells)
    assert not [p.name for p in (root/'nbs'/'course').glob('[0-9]*.ipynb') if f']({p.name})' not in text]

def test_colab_opens_what_github_has(monkeypatch):
    monkeypatch.syspath_prepend(root/'docs')
    from colab import link
    at = 'https://colab.research.google.com/github/someone/qlora_nb/blob/main/nbs/course/04_nf4.ipynb'
    for repo in ('https://github.com/someone/qlora_nb', 'https://github.com/someone/qlora_nb.git', 'https://github.com/someone/qlora_nb/'): assert f'href="{at}"' in link(repo, 'course/04_nf4.ipynb')
    assert not any((link('', 'course/04_nf4.ipynb'), link(None, 'index.ipynb'), link('https://example.org/x', 'course/04_nf4.ipynb'), link(repo, 'memory.ipynb')))
