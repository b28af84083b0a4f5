// Compile the sources in a folder with the Python of Pyodide: node page_compile.mjs PYODIDE FOLDER
const [pyodide, folder] = process.argv.slice(2)
const {loadPyodide} = await import(`${pyodide}/pyodide.mjs`)
const python = await loadPyodide({indexURL: pyodide})
python.mountNodeFS('/sources', folder)
python.runPython(`
import json, py_compile
with open('/sources/names.json') as f: names = json.load(f)
for key,name in names.items():
    own = 0 if name.startswith(('qlora_nb/', 'answer')) else 2 # Docstrings are kept where they are shown
    py_compile.compile(f'/sources/{key}.py', f'/sources/{key}.pyc', name, doraise=True, optimize=own, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
`)
