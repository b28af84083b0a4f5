// The planner in a worker of its own, so that the page never waits: Pyodide starts once, then each message gets one answer
import {loadPyodide} from './pyodide.mjs'

const here = new URL('.', import.meta.url)
const TYPES = {'pyodide.asm.wasm': 'application/wasm', 'pyodide.asm.mjs': 'text/javascript', 'python_stdlib.zip': 'application/zip', 'planner': ''}
const plainly = self.fetch.bind(self)

// Large files lie here compressed, under a name that no server decompresses of its own accord
async function unpacked(name) {
  const packed = await plainly(new URL(`${name}.packed`, here))
  if (!packed.ok) throw new Error(`${name}.packed cannot be loaded: status ${packed.status}`)
  return new Response(packed.body.pipeThrough(new DecompressionStream('gzip')), {headers: {'content-type': TYPES[name]}})
}
self.fetch = (what, options) => {
  const name = new URL(what.url ?? what, here).pathname.split('/').pop()
  return name in TYPES ? unpacked(name) : plainly(what, options)
}

// The bundle: the length of its head, the head with the name and length of each file, then the files one after the other
function install(FS, bytes, folder) {
  const length = new DataView(bytes.buffer).getUint32(0), head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4+length)))
  let at = 4+length
  for (const [name, size] of head) {
    const path = `${folder}/${name}`
    FS.mkdirTree(path.slice(0, path.lastIndexOf('/')))
    FS.writeFile(path, bytes.subarray(at, at += size))
  }
}

async function start() {
  const script = unpacked('pyodide.asm.mjs').then(r => r.blob()).then(b => import(URL.createObjectURL(b)))
  const bundle = unpacked('planner').then(r => r.arrayBuffer()).then(b => new Uint8Array(b))
  const python = await loadPyodide({
    indexURL: here.href, packageBaseUrl: here.href, createPyodideModule: (await script).default,
    env: {PYTHONDONTWRITEBYTECODE: '1', PYDANTIC_DISABLE_PLUGINS: '__all__', HF_HUB_OFFLINE: '1'},
    fsInit: async (FS, {sitePackages}) => install(FS, await bundle, sitePackages)})
  python.runPython('import answer, json')
  return python
}

export const started = start()
const reply = started.then(python => python.runPython('lambda text: json.dumps(answer.replies(**json.loads(text)))'))

self.onmessage = async ({data: {id, ...ask}}) => {
  try { self.postMessage({id, ...JSON.parse((await reply)(JSON.stringify(ask)))}) }
  catch (e) { self.postMessage({id, crash: String(e.message ?? e).trim().split('\n').pop()}) }
}
reply.then(() => self.postMessage({ready: true}), e => self.postMessage({dead: String(e.message ?? e).trim().split('\n').pop()}))
