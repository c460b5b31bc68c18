// What is asked of every page, whatever it shows. The functions run in the page and return lists of faults, empty where
// there are none.
'use strict';

// Text whose contrast with what lies behind it is below `least` (WCAG 2.1, 1.4.3: 4.5 for text of ordinary size). Behind a
// pattern each of its colours counts, and the worst decides.
function faintText(least) {
  function parse(text) {
    const match = /rgba?\(([^)]+)\)/.exec(text);
    if (!match) throw new Error('a colour that this check does not know: ' + text);
    const part = match[1].split(/[ ,/]+/).map(Number);
    return [part[0], part[1], part[2], part.length > 3 ? part[3] : 1];
  }
  function over(top, below) {
    const a = top[3] + below[3] * (1 - top[3]);
    if (a === 0) return [0, 0, 0, 0];
    return [0, 1, 2].map((i) => (top[i] * top[3] + below[i] * below[3] * (1 - top[3])) / a).concat(a);
  }
  function luminance(colour) {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function contrast(a, b) {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  }
  // All that may lie behind the element's text.
  function papers(element) {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e));
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    let below = [dark ? [18, 18, 18, 1] : [255, 255, 255, 1]];
    for (const style of chain) {
      below = below.map((paper) => over(parse(style.backgroundColor), paper));
      const pattern = (style.backgroundImage.match(/rgba?\([^)]+\)/g) || []).map(parse);
      if (pattern.length) below = below.flatMap((paper) => pattern.map((colour) => over(colour, paper)));
    }
    return below;
  }
  function opacity(element) {
    let product = 1;
    for (let e = element; e; e = e.parentElement) product *= Number(getComputedStyle(e).opacity);
    return product;
  }
  const faults = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || /^(SCRIPT|STYLE|TEMPLATE|TITLE)$/i.test(element.nodeName) || !element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    ++seen;
    for (const paper of papers(element)) {
      const ink = parse(svg ? style.fill : style.color);
      ink[3] *= opacity(element);
      const found = contrast(over(ink, paper), paper);
      if (found < least)
        faults.add(`${found.toFixed(2)} for ${element.nodeName.toLowerCase()}.${element.getAttribute('class') || ''} "${text.slice(0, 40)}"`);
    }
  }
  if (seen === 0) faults.add('there is no text');
  return [...faults];
}

// What makes the page wider than the window, and text of a drawing that is too small to read.
function misfits(leastText) {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) {
    faults.push(`the page is ${root.scrollWidth} wide in a window of ${innerWidth}`);
    for (const element of document.querySelectorAll('body *')) {
      // What is inside something that scrolls does not widen the page.
      let scrolls = false;
      for (let e = element.parentElement; e !== document.body; e = e.parentElement) scrolls = scrolls || getComputedStyle(e).overflowX !== 'visible';
      const box = element.getBoundingClientRect();
      const inner = getComputedStyle(element).overflowX === 'visible' ? element.scrollWidth : 0;
      const right = Math.max(box.right, box.left + inner);
      if (!scrolls && box.width > 0 && right > innerWidth + 1)
        faults.push(`${element.nodeName.toLowerCase()}#${element.id}.${element.getAttribute('class')} ends at ${Math.round(right)}`);
    }
  }
  const small = new Set();
  for (const text of document.querySelectorAll('text')) {
    if (!text.checkVisibility() || !text.getScreenCTM()) continue;
    const { a, b } = text.getScreenCTM();
    const size = parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
    if (size < leastText) small.add(`"${text.textContent.slice(0, 30)}" is ${size.toFixed(1)} pixels high`);
  }
  return faults.slice(0, 12).concat([...small].slice(0, 5));
}

// What a mouse can press and the tabulator does not reach; `reached` was marked by the keyboard.
function notReached() {
  const pressable = 'a[href],button,select,input,summary,[role=button],[onclick],[tabindex]';
  return [...document.querySelectorAll(pressable)]
    .filter((e) => e.checkVisibility({ visibilityProperty: true }) && !e.disabled && e.tabIndex >= 0 && !('reached' in e.dataset))
    .map((e) => `${e.nodeName.toLowerCase()}#${e.id} "${(e.textContent || '').trim().slice(0, 30)}"`);
}

module.exports = { faintText, misfits, notReached };
