"README.md is nbs/index.ipynb as Markdown: outputs as text, since GitHub drops styles, and links as seen from the root"
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

LINK = re.compile(r'(\]\(|(?:src|href)=")(?:(\.\./)|(?=images/|[\w/]+\.ipynb))')

def readme(nb):
    "The notebook's Markdown"
    nb.metadata.language_info = dict(name='python') # for the colours of the code, and taken out by nbdev-clean
    nb.cells = [o for o in nb.cells if not re.match(r'#\| *hide', o.source)]
    for o in nb.cells:
        if re.match(r'#\| *echo: false', o.source): o.source = ''
        o.source = re.sub(r'^#\|.*\n', '', o.source, flags=re.M)
        for out in o.get('outputs', []): out.get('data', {}).pop('text/html', None)
    md,res = MarkdownExporter().from_notebook_node(nb)
    assert not res['outputs'], 'a picture of the README lives in nbs/images/, not in an output'
    md = md.replace('```python\n\n```\n', '')
    return re.sub(r'\n{3,}', '\n\n', LINK.sub(lambda m: m[1]+('' if m[2] else 'nbs/'), md)).strip()+'\n'

if __name__=='__main__': Path('README.md').write_text(readme(nbformat.read('nbs/index.ipynb', 4)), encoding='utf-8')
