// Opens the pages in Chromium while a run is written, and does what a reader does.
//   node check.js TYCHO WRITE_LIVE_RUN [CHROMIUM]
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { pathToFileURL } = require('node:url');
const { Server, Visit, Writer, launch, run } = require('./harness.js');

const [tycho, writeLiveRun, executable = '/usr/bin/chromium'] = process.argv.slice(2).map((file) => path.resolve(file));
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tycho-browser-'));
const runs = path.join(scratch, 'runs');
fs.mkdirSync(runs);
process.env.TMPDIR = scratch;  // The browser's profile, too.
let browser, server, writer;

const visit = (address, options = {}) => Visit.open(browser, server.url + address, { own: server.url + '/', ...options });
const verdictOf = (law) => `#law-${law} > summary .verdict`;
// What the command says of a trace, which the page must say too.
const reported = (name, law) => JSON.parse(run(tycho, 'report', path.join(runs, name), '--format', 'json')).laws
  .find((each) => each.law === law && each.scope === 'run').verdict;
// The labels of the large chart's axis: what of the run it shows.
const span = (page) => page.$$eval('#chart .dygraph-axis-label-x', (all) => all.map((label) => label.textContent));

// Runs that several tests look at, made when the first of them needs them.
let toLookAt;
function someRuns() {
  toLookAt = toLookAt || (async () => {
    for (const name of ['first', 'second']) {
      await writer.tell('open ' + name);  // The first one may be open.
      await writer.tell(`steps ${name} 80 below`);
    }
    for (const width of [64, 128, 256]) await writer.tell(`sweep wide-${width} ${width}`);
  })();
  return toLookAt;
}

test.before(async () => {
  browser = await launch(executable);
  writer = new Writer(writeLiveRun, runs);
  server = await Server.start(tycho, runs);
});
test.after(async () => {
  if (browser) await browser.close();
  if (server) await server.stop();
  if (writer) await writer.end('SIGKILL');
  fs.rmSync(scratch, { recursive: true, force: true });
});

// A check that sees nothing passes everything.
test('the checks see what is wrong', async () => {
  const file = path.join(scratch, 'wrong.html');
  fs.writeFileSync(file, `<!doctype html><body style="background:#fff"><p style="color:#999">faint</p><p style="color:#000">clear</p>
    <p style="opacity:.5;color:#444">thin</p><p style="background-image:linear-gradient(rgb(0,0,0),rgb(0,0,0));color:#333">lost</p>
    <div style="width:2000px">wide</div><svg width="100" viewBox="0 0 1000 1000"><text font-size="12">tiny</text></svg>
    <button>one</button><a href="#" style="outline:none">two</a>
    <script>console.error('bad'); setTimeout(() => { throw new Error('worse'); }); new Image().src = 'http://example.org/';</script>`);
  const address = pathToFileURL(file).href;
  const seen = await Visit.open(browser, address, { own: address });
  await assert.rejects(seen.legible('all'), (error) => ['faint', 'thin', 'lost'].every((word) => error.message.includes(`"${word}"`)) &&
    !error.message.includes('"clear"'));
  await assert.rejects(seen.fits('all'), /wide in a window[^]*tiny/);
  await assert.rejects(seen.tabRound('all'), /cannot be seen/);
  await assert.rejects(seen.close(), (error) => ['console: bad', 'error: Error: worse', 'a request to http://example.org/']
    .every((text) => error.message.includes(text)));
});

test('a run appears in the list while it is written', async () => {
  const seen = await visit('/');
  await seen.until('no run', () => document.getElementById('summary').textContent === 'There is no run yet.');
  await writer.tell('open first');
  await writer.tell('steps first 20 below');
  await seen.until('the run', () => document.querySelector('#runs tbody a'));
  assert.strictEqual(await seen.text('#runs tbody a'), 'first');
  await seen.until('live', () => document.querySelector('#runs .state.live'));
  const row = await seen.page.$('#runs tbody tr');
  const took = [];
  for (let i = 0; i < 5; ++i) {
    const begin = performance.now();
    // Of a run that is live a step is judged when the next has begun.
    const step = await writer.tell('steps first 2 below') - 1;
    await seen.until(`step ${step}`, (wanted) => Number(document.querySelector('#runs tbody tr').cells[2].textContent) >= wanted, step);
    took.push((performance.now() - begin) / 1000);
  }
  console.log(`from the write of a step to the list in the browser: ${took.map((s) => s.toFixed(2)).join(' ')} s`);
  assert.ok(await row.evaluate((element) => element.isConnected), 'the row was made anew');
  await seen.close();
});

test('a verdict changes on the page of a run, and what is open and zoomed stays so', async () => {
  const seen = await visit('/run/first');
  const { page } = seen;
  await seen.until('charts', () => document.querySelectorAll('#multiples canvas').length > 0 && document.querySelector('#chart canvas'));
  const edge = verdictOf('edge_of_stability');
  assert.strictEqual(await page.$(edge + '.HOLDS'), null);
  await page.click('#law-edge_of_stability > summary');
  assert.ok(await page.$('#law-edge_of_stability[open]'));
  const began = performance.now();
  await writer.tell('steps first 100 edge');
  await seen.until('the verdict', (selector) => document.querySelector(selector), edge + '.HOLDS');
  console.log(`from the write of 100 steps to their verdict on the page: ${((performance.now() - began) / 1000).toFixed(2)} s`);
  assert.strictEqual(reported('first', 'edge_of_stability'), 'HOLDS');
  assert.ok(await page.$('#law-edge_of_stability[open]'), 'the law that was opened has closed');

  // Drag across the middle of the chart.
  const whole = (await span(page)).map(Number);
  // A place in it, by the share of its width.
  const place = async (share) => {
    await page.locator('#chart').scrollIntoViewIfNeeded();
    const box = await page.locator('#chart').boundingBox();
    return [box.x + share * box.width, box.y + box.height / 2];
  };
  await page.mouse.move(...await place(0.4));
  await page.mouse.down();
  await page.mouse.move(...await place(0.6), { steps: 5 });
  await page.mouse.up();
  const zoomed = (await span(page)).map(Number);
  const extent = (labels) => Math.max(...labels) - Math.min(...labels);
  assert.ok(zoomed.length > 1 && extent(zoomed) < 0.5 * extent(whole), `${whole} became ${zoomed}`);
  // The chart of the curvature is zoomed by keyboard.
  const curve = () => page.$$eval('#curves figure:first-child .dygraph-axis-label-x', (all) => all.map((label) => Number(label.textContent)));
  const wholeCurve = await curve();
  await page.focus('#curves figure:first-child .small');
  for (const key of ['+', '+', 'ArrowRight']) await page.keyboard.press(key);
  const zoomedCurve = await curve();
  assert.ok(extent(zoomedCurve) < 0.5 * extent(wholeCurve), `${wholeCurve} became ${zoomedCurve}`);
  // What is new stands on the page, and both stay as they were.
  const kept = await page.$('#multiples figure');
  const step = await writer.tell('steps first 40 edge') - 1;
  await seen.until('new steps', (wanted) => Number((document.getElementById('now').textContent.match(/step (\d+)/) || [])[1]) >= wanted &&
    document.getElementById('to').textContent === 'step ' + wanted, step);
  assert.deepStrictEqual((await span(page)).map(Number), zoomed, 'new steps undid the zoom');
  assert.deepStrictEqual(await curve(), zoomedCurve, 'new steps undid the zoom of the curvature');
  assert.ok(await kept.evaluate((element) => element.isConnected), 'small charts were made anew');
  assert.ok(await page.$('#layer-table tbody tr'), 'the table of layers is empty');
  await page.mouse.dblclick(...await place(0.5));
  const after = (await span(page)).map(Number);
  assert.ok(extent(after) > 2 * extent(zoomed), `${zoomed} became ${after}`);
  await page.focus('#chart');
  await page.keyboard.press('+');
  await page.keyboard.press('+');
  assert.ok(extent((await span(page)).map(Number)) < 0.5 * extent(after));
  await page.keyboard.press('0');
  assert.deepStrictEqual((await span(page)).map(Number), after);
  // Links to charts that came while the page was open work as those that were there.
  const link = page.locator('#law-edge_of_stability a[data-statistic]').first();
  const shown = await seen.text('#title');
  await link.click();
  assert.notStrictEqual(await seen.text('#title'), shown);
  await seen.close();
});

test('a link opens a law with the series of a layer', async () => {
  const seen = await visit('/run/first#law=edge_of_stability&statistic=grad_norm_sq&layer=head');
  await seen.until('the series', () => document.querySelector('#chart canvas') && /gradient norm of head/.test(document.getElementById('title').textContent));
  assert.ok(await seen.page.$('#law-edge_of_stability[open]'));
  await seen.close();
});

test('what breaks is said: a loss that is no number, a writer that dies, a run that is deleted', async (context) => {
  const other = new Writer(writeLiveRun, runs);
  context.after(() => other.end('SIGKILL'));
  await other.tell('open broken');
  await other.tell('steps broken 20 below');
  const list = await visit('/');
  await list.until('the run', () => [...document.querySelectorAll('#runs tbody a')].some((link) => link.textContent === 'broken'));
  const seen = await visit('/run/broken');
  await seen.until('charts', () => document.querySelector('#chart canvas'));
  assert.doesNotMatch(await seen.text('#now'), /ALARM/);
  await other.tell('steps broken 5 broken');
  await seen.until('the alarm', () => /ALARM/.test(document.getElementById('now').textContent));
  await list.until('the alarm in the list', () => document.querySelector('#runs td.remarks.alarm'));
  await seen.legible('a run with an alarm');
  await list.legible('a list with an alarm');
  await other.end('SIGKILL');
  await seen.until('its death', () => /the writer died/.test(document.getElementById('now').textContent));
  await list.until('its death in the list', () => document.querySelector('#runs .state.died'));
  fs.rmSync(path.join(runs, 'broken'), { recursive: true });
  await seen.until('that it is gone', () => /gone/.test(document.getElementById('now').textContent));
  await list.close();
  await seen.close();
});

test('the server goes away and comes back', async () => {
  const list = await visit('/');
  const seen = await visit('/run/first');
  for (const each of [list, seen]) each.forgive(/^console: Failed to load resource: net::ERR_|^console: .*text\/event-stream/);
  await seen.until('charts', () => document.querySelector('#chart canvas'));
  const { port } = server;
  await server.stop();
  for (const each of [list, seen]) await each.until('the loss', () => document.querySelector('#connection.lost'));
  const step = await writer.tell('steps first 10 edge') - 1;
  server = await Server.start(tycho, runs, port);
  for (const each of [list, seen]) await each.until('the connection', () => !document.querySelector('#connection.lost'));
  await list.until('the step in the list', (wanted) => [...document.querySelectorAll('#runs td.number')].some((cell) => Number(cell.textContent) >= wanted), step);
  await seen.until('the step', (wanted) => document.getElementById('to').textContent === 'step ' + wanted, step);
  await list.close();
  await seen.close();
});

test('everything is reached by keyboard', async () => {
  await someRuns();
  const seen = await visit('/');
  const { page } = seen;
  await seen.until('the runs', () => document.querySelectorAll('#runs tbody tr').length >= 5);
  await seen.tabRound('the list');
  // Both are chosen and compared.
  for (const name of ['first', 'second']) {
    await page.focus(`input[aria-label="compare ${name}"]`);
    await page.keyboard.press('Space');
  }
  await page.focus('#compare');
  await page.keyboard.press('Enter');
  await seen.until('the comparison', () => /compare/.test(location.pathname) && document.querySelector('#chart path.run'));
  await seen.tabRound('the comparison');
  await page.goBack();
  await seen.until('the list', () => document.querySelectorAll('#runs tbody tr').length >= 5);
  await page.focus('#runs a[href="/run/first"]');
  await page.keyboard.press('Enter');
  await seen.until('the run', () => location.pathname === '/run/first' && document.querySelector('#chart canvas'));
  await seen.tabRound('the run');

  await page.focus('#law-catapult > summary');
  await page.keyboard.press('Enter');
  assert.ok(await page.$('#law-catapult[open]'));
  // Rows of the heatmap: down, and chosen.
  await page.focus('#rows div');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  assert.match(await seen.text('#title'), /of conv2/);
  // A heading sorts the layers, and keeps the focus.
  const sorted = () => page.evaluate(() => document.activeElement.closest('th').getAttribute('aria-sort'));
  await page.focus('#layer-table th:nth-child(2) button');
  await page.keyboard.press('Enter');
  assert.strictEqual(await sorted(), 'descending');
  await page.keyboard.press('Enter');
  assert.strictEqual(await sorted(), 'ascending');
  await seen.close();
});

// Every page there is: where it is, and when it is ready.
const pages = [
  ['the list', '/', () => document.querySelectorAll('#runs tbody tr').length >= 5],
  ['a run', '/run/first', () => document.querySelector('#chart canvas') && document.querySelector('#multiples canvas')],
  ['a comparison', '/compare?run=first&run=second', () => document.querySelector('#chart path.run')],
  ['a sweep', '/compare?run=wide-64&run=wide-128&run=wide-256', () => document.querySelector('.picture') && document.querySelector('#chart path.run')],
  ['no such run', '/run/none', () => document.querySelector('h1')],
  ['no such page', '/none', () => document.querySelector('h1')],
];
for (const dark of [false, true]) {
  test(`every page can be read on a narrow screen, ${dark ? 'dark' : 'light'}`, async () => {
    await someRuns();
    for (const [what, address, ready] of pages) {
      const seen = await visit(address, { width: 390, dark });
      if (/no such/.test(what)) seen.forgive(/^console: Failed to load resource: .* 404/);
      await seen.until(what, ready);
      assert.strictEqual(await seen.page.evaluate(() => matchMedia('(prefers-color-scheme: dark)').matches), dark);
      // A telephone that is turned, and a window that is made wider.
      for (const width of [390, 844, 1280]) {
        await seen.page.setViewportSize({ width, height: 900 });
        await seen.fits(`${what} at ${width}`);
      }
      await seen.legible(what);
      await seen.close();
    }
  });
}

test('the reports that are saved need no network', async () => {
  await someRuns();
  const report = path.join(scratch, 'report.html');
  const comparison = path.join(scratch, 'comparison.html');
  run(tycho, 'report', path.join(runs, 'first'), '-o', report);
  run(tycho, 'compare', path.join(runs, 'first'), path.join(runs, 'second'), '-o', comparison);
  for (const [file, drawn] of [[report, () => document.querySelector('#chart canvas')], [comparison, () => document.querySelector('#chart path.run')]]) {
    for (const [width, dark] of [[390, true], [1280, false]]) {
      const address = pathToFileURL(file).href;
      const seen = await Visit.open(browser, address, { own: address, width, dark, offline: true });
      await seen.until(file, drawn);
      await seen.fits(`${file} at ${width}`);
      await seen.legible(`${file} at ${width}`);
      await seen.close();
    }
  }
});
