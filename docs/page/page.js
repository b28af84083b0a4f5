// One state, the text of a config cell; controls change it, the worker plans it, the address carries it
const $ = id => document.getElementById(id)
const FIRST = $('cell').value, HUB = 'https://huggingface.co'
const controls = [...document.querySelectorAll('[data-key], [data-own]')]
let state = {cell: FIRST, kept: {}, tokens: null}  // `kept`: model → what its config.json holds; tokens in the training rows
let shown = {}                       // dotted key → value of the last config that could be read
let changes = {}                     // what was changed by controls since, as far as the worker has not answered it
let typed = false                    // the cell is being edited: its text is not replaced

// ---- the worker

const waiting = new Map()
let worker, count = 0

function begin() {
  if (location.protocol === 'file:') return stopped('a page opened from a folder may not start it. Serve the folder instead: python -m http.server')
  worker = new Worker('worker.js', {type: 'module'})
  worker.onerror = e => stopped(e.message || 'the worker could not be loaded')
  worker.onmessage = ({data: {id, ...found}}) => {
    if (found.ready) return
    if (found.dead) return stopped(found.dead)
    waiting.get(id)(found)
    waiting.delete(id)
  }
}

function stopped(why) {
  $('status').textContent = `Python did not start here: ${why}`
  for (const control of [...controls, ...document.querySelectorAll('#actions button, #tokens, #cell')]) control.disabled = true
}

function send(ask) {
  return new Promise(answered => {
    waiting.set(++count, answered)
    worker.postMessage({id: count, ...ask})
  })
}

// ---- planning: one question at a time, and of those that came meanwhile only the last

let next = null, busy = false
const is = what => document.body.dataset.state = what // planning, planned, refused or asking

async function plan(wanted) {
  next = wanted ?? {do: 'answer', ...state, change: {...changes}}
  is('planning')
  if (busy || !worker) return
  busy = true
  while (next) {
    const now = next, since = performance.now()
    next = null
    const late = setTimeout(() => { $('plan').classList.add('old'); if (shown.model) $('status').textContent = 'Planning …' }, 250)
    const {typed: _, ...ask} = now, found = await send(ask)
    clearTimeout(late)
    for (const [key, value] of Object.entries(now.change ?? {})) if (changes[key] === value) delete changes[key]
    if (!found.errors && !found.crash) state = {...state, cell: found.cell, kept: {...state.kept, ...found.kept}}
    if (next) { if (next.do === 'answer' && !next.typed) next = {do: 'answer', ...state, change: {...changes}} }
    else show(found, (performance.now()-since)/1000)
  }
  busy = false
}

function show(found, seconds) {
  const problems = found.crash ? [`The planner failed: ${found.crash}`] : (found.errors ?? []).map(e => e.text)
  if (found.headline && problems.length>1) problems.unshift(found.headline)
  is(problems.length ? 'refused' : found.ask ? 'asking' : 'planned')
  $('errors').hidden = !problems.length
  $('errors').textContent = problems.join('\n')
  $('notes').textContent = (found.notes ?? []).join('\n')
  $('asked').hidden = !found.ask
  $('plan').classList.toggle('old', !found.html)
  $('status').textContent = found.html ? `Planned in ${seconds.toFixed(seconds<10 ? 1 : 0)} s, in this page.` : problems.length ? 'Not planned. Below is the last plan.' : ''
  if (problems.length) return fill(shown)
  shown = found.shown
  fill(shown)
  if (!typed) $('cell').value = found.cell
  remember(found.model)
  if (found.ask) return ask_for(found)
  document.title = found.title
  draw(found.html)
  if (!performance.getEntriesByName('first answer').length) performance.mark('first answer')
}

// The folds that were open stay open
function draw(html) {
  const words = node => node.nodeName === 'SMALL' ? '' : node.textContent.replace(/[\d,.]+/g, '')
  const name = fold => [...fold.querySelector('summary')?.childNodes ?? []].map(words).join('').trim()
  const was = new Map([...$('plan').querySelectorAll('details')].map(fold => [name(fold), fold.open]))
  $('plan').innerHTML = html
  for (const fold of $('plan').querySelectorAll('details')) if (was.has(name(fold))) fold.open = was.get(name(fold))
}

// ---- the controls

const key_of = control => control.dataset.key ?? `${shown.method ?? 'lora'}.${control.dataset.own}`

function fill(values) {
  for (const control of controls) {
    const value = key_of(control) in changes ? changes[key_of(control)] : values[key_of(control)]
    control.disabled = value === undefined && Boolean(values.model)
    if (value === undefined || control === document.activeElement && control.tagName === 'INPUT') continue
    if (control.tagName === 'SELECT' && ![...control.options].some(o => o.value === value)) control.add(new Option(value, value))
    control.value = value
  }
}

for (const control of controls) control.addEventListener('change', () => {
  if (!control.value.trim()) return
  changes[key_of(control)] = control.value.trim()
  typed = false
  plan()
})

// A list of suggestions shows only what goes with the text in the field: it is emptied to be chosen from
const model = document.querySelector('[data-key=model]')
model.addEventListener('focus', () => { model.placeholder = model.value; model.value = '' })
model.addEventListener('blur', () => model.value = changes.model ?? shown.model ?? model.placeholder)
$('controls').addEventListener('submit', event => event.preventDefault())
$('controls').addEventListener('keydown', event => { if (event.key === 'Enter' && event.target.tagName === 'INPUT') event.target.blur() })

const UNITS = {k: 1e3, m: 1e6, b: 1e9}

$('tokens').addEventListener('change', () => {
  const [, number, unit] = /^([\d.]+)\s*([kmb]?)$/i.exec($('tokens').value.replace(/[\s,_]/g, '')) ?? []
  state.tokens = number ? Math.round(Number(number)*(UNITS[unit.toLowerCase()] ?? 1)) || null : null
  $('tokens').value = state.tokens?.toLocaleString('en') ?? ''
  plan()
})

let pause
$('cell').addEventListener('input', () => {
  is('planning')
  clearTimeout(pause)
  pause = setTimeout(read_cell, 400)
})
$('cell').addEventListener('blur', () => typed = false)

function read_cell() {
  const text = $('cell').value
  changes = {}
  if (text.trimStart().startsWith('{')) { typed = false; return plan({do: 'paste', text, cell: state.cell, tokens: state.tokens}) }
  typed = document.activeElement === $('cell')
  state = {...state, cell: text}
  plan({do: 'answer', ...state, typed: true})
}

// ---- a model that is no preset

function ask_for({ask, near}) {
  const box = $('asked'), line = document.createElement('div')
  line.textContent = `${ask} is not one of the models that this page knows. Its shape is in its config.json: read it from the Hub, or paste it into the cell above.`
  box.replaceChildren(line, button(`Read it from ${new URL(HUB).host}`, 'first', () => read_hub(ask)))
  if (near) box.append(button(`Did you mean ${near}?`, '', () => { changes.model = near; plan() }))
}

function button(text, kind, clicked) {
  const made = document.createElement('button')
  Object.assign(made, {type: 'button', textContent: text, className: kind, onclick: clicked})
  return made
}

const WHY = {401: 'the model is gated or private, or there is none of that name', 403: 'the model is gated', 404: 'there is no such model, or it has no config.json'}

async function read_hub(id) {
  const path = [...id.split('/'), 'resolve', shown.revision || 'main', 'config.json'].map(encodeURIComponent).join('/')
  try {
    const answer = await fetch(`${HUB}/${path}`, {credentials: 'omit', referrerPolicy: 'no-referrer'})
    if (!answer.ok) throw new Error(WHY[answer.status] ?? `the Hub answered with status ${answer.status}`)
    state.kept = {...state.kept, [id]: await answer.json()}
    plan()
  } catch (e) {
    $('errors').hidden = false
    $('errors').textContent = `${id}: ${e.message}. Its config.json can be pasted into the cell instead.`
  }
}

// ---- the address

function remember(model) {
  const parts = new URLSearchParams({cell: state.cell})
  if (state.kept[model]) parts.set('kept', JSON.stringify({[model]: state.kept[model]}))
  if (state.tokens) parts.set('tokens', state.tokens)
  history.replaceState(null, '', state.cell === FIRST && !state.tokens ? location.pathname+location.search : `#${parts}`)
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1)), cell = parts.get('cell') ?? FIRST
  state = {cell, kept: {}, tokens: Number(parts.get('tokens')) || null}
  try { state.kept = JSON.parse(parts.get('kept') ?? '{}') } catch { /* The model is then asked for */ }
  changes = {}
  typed = false
  $('cell').value = cell
  $('tokens').value = state.tokens?.toLocaleString('en') ?? ''
  if (location.hash) $('plan').classList.add('old')
  plan()
}
window.addEventListener('hashchange', recall)

// ---- to go on elsewhere

let fades
function say(text) {
  $('said').textContent = text
  clearTimeout(fades)
  fades = setTimeout(() => $('said').textContent = '', 4000)
}

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text) }
  catch { return say('This browser does not let the page copy: select the text in the config cell') }
  say(`Copied: ${what}`)
}

const refused = found => found.errors?.[0].text ?? found.crash

$('copy').onclick = async () => {
  const found = await send({do: 'copy', cell: state.cell})
  refused(found) ? say(refused(found)) : copy(found.text, 'a cell that begins with %%qlora_config')
}
$('link').onclick = () => copy(location.href, 'the address of this plan')
$('notebook').onclick = async () => {
  const found = await send({do: 'notebook', cell: state.cell})
  if (refused(found)) return say(refused(found))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([JSON.stringify(found.notebook, null, 1)], {type: 'application/x-ipynb+json'}))
  link.download = found.file
  link.click()
  URL.revokeObjectURL(link.href)
}
$('reset').onclick = () => { history.replaceState(null, '', location.pathname+location.search); recall() }

begin()
recall()
