"A JupyterLab and a Chromium as a person has them, for the browser tests and for the pictures of the README"
import json, os, secrets, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
import nbformat, psutil

MINUTE = 60_000
SETTINGS = {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
    'notebook-extension/tracker': dict(windowingMode='none', recordTiming=False), 'docmanager-extension/plugin': dict(autosave=False)}
PANEL,CELL = 'window.jupyterapp.shell.currentWidget','.jp-Notebook .jp-CodeCell'
KERNEL = f'{PANEL}?.sessionContext?.session?.kernel'

def cells(path, *sources):
    "Save a notebook with these code cells"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, path)

class Server:
    "JupyterLab on loopback with a token, its own settings, and every outward feature off"
    def __init__(self, root:Path):
        self.root,home,token = root,root/'.home',secrets.token_hex(16)
        for name,values in SETTINGS.items():
            f = home/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_text(json.dumps(values))
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.url = f'http://127.0.0.1:{s.getsockname()[1]}'
        env = {'OMP_NUM_THREADS': '1', **os.environ, 'HF_HUB_OFFLINE': '1', 'IPYTHONDIR': str(home/'ipython'), 'JUPYTER_CONFIG_DIR': str(home/'config'),
            'JUPYTER_DATA_DIR': str(home/'data'), 'JUPYTER_RUNTIME_DIR': str(home/'runtime'), 'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'),
            'JUPYTERLAB_WORKSPACES_DIR': str(home/'workspaces')}
        off = ['--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.extension_manager=readonly',
            '--ServerApp.terminals_enabled=False']
        cmd = [sys.executable, '-m', 'jupyter', 'lab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={self.url.rsplit(":", 1)[1]}',
            f'--ServerApp.root_dir={root}', f'--IdentityProvider.token={token}', '--expose-app-in-browser', *off]
        self.query,self.log = f'token={token}&reset',(home/'lab.log').open('w')
        self.process = subprocess.Popen(cmd, stdout=self.log, stderr=subprocess.STDOUT, env=env, start_new_session=True)

    def wait(self, seconds=120):
        "Until it answers"
        end = time.time()+seconds
        while time.time()<end and self.process.poll() is None:
            try: return urllib.request.urlopen(f'{self.url}/api?{self.query}', timeout=5).close()
            except OSError: time.sleep(.2)
        raise RuntimeError('JupyterLab did not start:\n'+Path(self.log.name).read_text()[-3000:])

    def stop(self):
        "End the server and its kernels; a kernel has a process group of its own"
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        if family: os.killpg(self.process.pid, signal.SIGTERM)
        for p in psutil.wait_procs(family, timeout=20)[1]: p.kill()
        self.process.wait()
        self.log.close()

class Lab:
    "One browser window on one server"
    def __init__(self, server:Server, playwright, chromium:str):
        self.server,self.errors = server,[]
        self.browser = playwright.chromium.launch(executable_path=chromium, headless=True,
            args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking'])
        self.context = self.browser.new_context(viewport=dict(width=1280, height=900))
        self.context.set_default_timeout(2*MINUTE)
        self.context.route('**/*', lambda r: r.continue_() if r.request.url.startswith((server.url, 'data:', 'blob:')) else r.abort())
        self.page = self.context.new_page()
        self.page.on('console', lambda m: self.errors.append(m.text) if m.type=='error' else None)
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))

    def do(self, command, **args):
        "A command of JupyterLab, as its menus call it"
        return self.page.evaluate('([c, a]) => window.jupyterapp.commands.execute(c, a).then(() => null)', [command, args])

    def open(self, name):
        "A notebook in a fresh window; its kernel is idle"
        self.page.goto(f'{self.server.url}/lab/tree/{name}?{self.server.query}', wait_until='domcontentloaded')
        self.page.locator('.jp-NotebookPanel .jp-Notebook').wait_for()
        self.wait(f"{KERNEL}?.status==='idle'")

    def wait(self, condition, timeout=2*MINUTE): self.page.wait_for_function(f'() => {condition}', timeout=timeout)
    def cell(self, i): return self.page.locator(CELL).nth(i)
    def output(self, i): return self.cell(i).locator('.jp-OutputArea-output')
    def prompt(self, i): return self.cell(i).locator('.jp-InputPrompt').inner_text()
    def start(self, i):
        "Run a cell as a person does, and do not wait"
        self.cell(i).locator('.cm-content').first.click()
        self.page.keyboard.press('Control+Enter')

    def run(self, i, timeout=4*MINUTE):
        "Run a cell until its number has changed"
        was = self.prompt(i)
        self.start(i)
        self.finished(i, was, timeout)

    def finished(self, i, was='', timeout=4*MINUTE):
        "Wait until a cell has a number other than `was`"
        prompt = f"document.querySelectorAll('{CELL}')[{i}].querySelector('.jp-InputPrompt').innerText.trim()"
        self.wait(f"/^\\[\\d+\\]:$/.test({prompt}) && {prompt}!=={was.strip()!r}", timeout)

    def step(self, i, after=-1, timeout=4*MINUTE):
        "The step that a cell's panel shows, once it is later than `after`"
        shown = f"Number(/step\\s*(\\d+) of/.exec(document.querySelectorAll('{CELL}')[{i}].innerText)?.[1])"
        self.wait(f'{shown}>{after}', timeout)
        return self.page.evaluate(f'() => {shown}')

    def toolbar(self, name): return self.page.locator(f'.jp-NotebookPanel-toolbar [data-jp-item-name="{name}"] :is(jp-button, button)').first
    def button(self, i): return self.output(i).locator('button.widget-button')

    def save(self):
        "Ctrl+S, until everything is on disk"
        self.page.keyboard.press('Control+s')
        self.wait(f'!{PANEL}.context.model.dirty')

    def shutdown(self):
        "End all kernels, and stop showing the notebook"
        self.page.evaluate('() => window.jupyterapp.serviceManager.sessions.shutdownAll()')
        self.page.goto('about:blank')

    def theme(self, name): # `Light` or `Dark`
        "Change the theme, and wait until it is there"
        self.do('apputils:change-theme', theme=f'JupyterLab {name}')
        self.wait(f"document.body.dataset.jpThemeLight==='{str(name=='Light').lower()}'")

    @contextmanager
    def narrow(self, width=700):
        "A narrow window without the file list"
        def change(width):
            self.page.set_viewport_size(dict(width=width, height=900))
            self.do('application:toggle-left-area')
        change(width)
        try: yield
        finally: change(1280)

    def close(self): self.browser.close()
