"Where the repository has an address on GitHub (`REPO_URL=https://github.com/… make docs`), each lesson and example opens in Colab; the start page leads to the planner's page, where that is built"
import os

def on_config(config):
    "mkdocs: before the build"
    config.repo_url = os.environ.get('REPO_URL') or None

def link(repo_url:str, path:str)->str: # HTML; empty without an address on GitHub
    "The way from a page of the site to its notebook in Colab"
    name = (repo_url or '').partition('github.com/')[2].strip('/').removesuffix('.git')
    if not name or not path.startswith(('course/', 'examples/')): return ''
    return f'<p><a href="https://colab.research.google.com/github/{name}/blob/main/nbs/{path}">Open in Colab</a></p>'

PLANNER = '<p><a href="planner/index.html">Plan a run in the browser</a>: no installation, no kernel</p>'

def on_page_content(html, page, config, files):
    "mkdocs: for each page"
    path = page.file.src_uri
    built = path=='index.ipynb' and os.path.isdir(os.path.join(os.path.dirname(__file__), '..', '_page'))
    return link(config.repo_url, path)+(PLANNER if built else '')+html
