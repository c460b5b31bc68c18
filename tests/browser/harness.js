// The programs that the checks drive (a trainer's stand-in, the server, the browser), and a page that notices what goes
// wrong in it.
'use strict';
const assert = require('node:assert');
const { spawn, execFileSync } = require('node:child_process');
const readline = require('node:readline');
const { chromium } = require('playwright-core');
const { faintText, misfits, notReached } = require('./page_checks.js');

// All that was found stands in the message, whatever the version of Node.
function none(faults, what) {
  assert.ok(faults.length === 0, `${what}:\n${faults.join('\n')}`);
}

// Nothing here waits so long unless it is broken.
const LIMIT = 30000;

// A program of which each command on its input is answered by a line.
class Writer {
  constructor(program, directory) {
    this.process = spawn(program, [directory], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.lines = readline.createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
  }
  // Gives the last step that was written.
  async tell(command) {
    this.process.stdin.write(command + '\n');
    const { value } = await this.lines.next();
    assert.match(String(value), /^ok /, `${command}: ${value}`);
    return Number(value.slice(3));
  }
  async end(signal) {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.process.once('exit', resolve));
    if (signal) this.process.kill(signal);
    else this.process.stdin.end();
    await ended;
  }
}

// `tycho serve`; `url` has no slash at its end.
class Server {
  static async start(tycho, directory, port = 0) {
    const server = new Server();
    server.process = spawn(tycho, ['serve', directory, '--port', String(port), '--cache', ''], { stdio: ['ignore', 'pipe', 'inherit'] });
    const { value } = await readline.createInterface({ input: server.process.stdout })[Symbol.asyncIterator]().next();
    assert.match(String(value), /^http:\/\/127\.0\.0\.1:\d+\/$/);
    server.url = value.slice(0, -1);
    server.port = Number(new URL(value).port);
    return server;
  }
  async stop() {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.process.once('exit', resolve));
    this.process.kill('SIGTERM');
    await ended;
  }
}

// Without a sandbox, as root needs it, and without what a browser asks for on its own account. Names lead nowhere.
function launch(executablePath) {
  return chromium.launch({
    executablePath,
    chromiumSandbox: false,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'],
  });
}

// A page in a profile of its own. `own`: what its requests' addresses begin with.
class Visit {
  static async open(browser, address, { own, width = 1280, dark = false, offline = false }) {
    const visit = new Visit();
    visit.context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: dark ? 'dark' : 'light', offline });
    visit.context.setDefaultTimeout(LIMIT);
    visit.troubles = [];
    visit.requests = 0;
    visit.forgiven = [];
    const page = await visit.context.newPage();
    visit.page = page;
    const trouble = (text) => visit.troubles.push(text);
    page.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') trouble(`console: ${message.text()} (${message.location().url})`);
    });
    page.on('pageerror', (error) => trouble(`error: ${error.stack || error.message}`));
    page.on('crash', () => trouble('the page crashed'));
    page.on('websocket', (socket) => trouble(`a socket to ${socket.url()}`));
    page.on('request', (request) => {
      ++visit.requests;
      if (!request.url().startsWith(own) && !/^(data|blob):/.test(request.url())) trouble(`a request to ${request.url()}`);
    });
    await page.goto(address);
    return visit;
  }
  // Troubles that match belong to what the check does.
  forgive(pattern) { this.forgiven.push(pattern); }
  // Until `condition` is true in the page; says what it waited for where it is not.
  async until(what, condition, argument) {
    try {
      await this.page.waitForFunction(condition, argument, { polling: 'raf' });
    } catch (error) {
      throw new Error(`${what}: not within ${LIMIT / 1000} s, or ${error.message}\n${this.troubles.join('\n')}`);
    }
  }
  text(selector) { return this.page.locator(selector).first().innerText(); }
  // All text is there to be looked at.
  openAll() {
    return this.page.evaluate(() => document.querySelectorAll('details').forEach((details) => { details.open = true; }));
  }
  async legible(what) {
    await this.openAll();
    none(await this.page.evaluate(faintText, 4.5), `${what}: text that can hardly be read`);
  }
  async fits(what) {
    await this.openAll();
    none(await this.page.evaluate(misfits, 9), `${what}: does not fit`);
  }
  // Goes round with the tabulator: everything that can be pressed is reached, and shows that it is.
  async tabRound(what) {
    const { page } = this;
    await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
    const hidden = [];
    for (let i = 0; i < 600; ++i) {
      await page.keyboard.press('Tab');
      const seen = await page.evaluate(() => {
        const e = document.activeElement;
        if (e === document.body || 'reached' in e.dataset) return null;
        e.dataset.reached = '';
        const style = getComputedStyle(e);
        return { name: `${e.nodeName}#${e.id}.${e.className}`, marked: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 };
      });
      if (seen === null) break;
      if (!seen.marked) hidden.push(seen.name);
    }
    none(hidden, `${what}: focus that cannot be seen`);
    none(await page.evaluate(notReached), `${what}: not reached by the tabulator`);
  }
  async close() {
    await this.context.close();
    assert.ok(this.requests > 0);
    none(this.troubles.filter((text) => !this.forgiven.some((pattern) => pattern.test(text))), 'what went wrong in the page');
  }
}

function run(program, ...args) {
  return execFileSync(program, args, { maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] }).toString();
}

module.exports = { Server, Visit, Writer, launch, run };
