// What the scripts of all pages share.
window.tycho = (function () {
  'use strict';
  var dark = !!window.matchMedia && window.matchMedia('(prefers-color-scheme: dark)').matches;

  // A number as every page says it (number_text.h): four significant digits, or fewer.
  function show(value, digits) {
    if (typeof value === 'string') return value;
    if (value === null || value === undefined || !isFinite(value)) return '';
    digits = digits > 0 && digits < 5 ? digits : 4;
    var size = Math.abs(value);
    var rounded = +value.toPrecision(digits);
    return size !== 0 && (Math.abs(rounded) >= 1e6 || Math.abs(rounded) < 1e-3) ?
      value.toExponential(digits - 1).replace(/\.?0+e/, 'e').replace('e+', 'e') : String(rounded);
  }
  // For an axis; the library that draws charts passes more than the value.
  function tick(value) { return show(value, 3); }

  // Perceptually even from dark to light, so that it can be read without colour too (viridis, sampled).
  var stops = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
    [170, 220, 50], [253, 231, 37]];
  function colour(t) {
    var at = Math.max(0, Math.min(1, t)) * (stops.length - 1);
    var i = Math.min(stops.length - 2, Math.floor(at));
    return stops[i].map(function (c, k) { return Math.round(c + (stops[i + 1][k] - c) * (at - i)); });
  }
  // Of a line: without the end that the paper swallows.
  function lineColour(t) { return 'rgb(' + colour(dark ? 0.3 + 0.7 * t : 0.8 * t).join(',') + ')'; }

  function make(name, text, parent) {
    var node = document.createElement(name);
    if (text !== undefined && text !== null) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }
  // Something to press, with a mouse or a keyboard.
  function pressable(node, action) {
    node.tabIndex = 0;
    node.setAttribute('role', 'button');
    node.onclick = action;
    node.onkeydown = function (event) {
      if (event.target !== node || (event.key !== 'Enter' && event.key !== ' ')) return;
      event.preventDefault();
      action(event);
    };
    return node;
  }
  // The name of a statistic for people; of the square of a norm, that of the norm.
  function title(statistic) {
    return statistic.replace(/_norm_sq$/, '_norm').replace(/_/g, ' ').replace(/\bgrad\b/, 'gradient').replace(/\brms\b/, 'RMS');
  }
  function isSquare(statistic) { return /_norm_sq$/.test(statistic); }
  function unit(entry) { return entry.unit && entry.unit !== '1' ? ' [' + entry.unit + ']' : ''; }

  function bytes(base64) {
    var text = atob(base64);
    var result = new Uint8Array(text.length);
    for (var i = 0; i < text.length; i++) result[i] = text.charCodeAt(i);
    return result;
  }
  // Gives what a script element holds to `use`: JSON, or in large pages JSON that is deflated, in base64.
  function unpack(node, use) {
    if (node.type === 'application/json') {
      use(JSON.parse(node.textContent));
      return;
    }
    if (typeof DecompressionStream === 'undefined') {
      make('p', 'The charts of this page need a browser with DecompressionStream: Chromium 80, Firefox 113, Safari 16.4, or newer.',
        document.querySelector('header')).className = 'alarm';
      return;
    }
    var stream = new Blob([bytes(node.textContent)]).stream().pipeThrough(new DecompressionStream('deflate'));
    new Response(stream).text().then(function (text) { use(JSON.parse(text)); });
  }
  // The legend of a chart: lines have the colour, text that of all text, which can be read on any paper.
  function legend(data) {
    var known = data.x !== undefined;
    var parts = data.series.filter(function (each) { return each.isVisible && (!known || each.yHTML !== undefined); }).map(function (each) {
      return '<span class="key" style="color:' + each.color + '">' + each.dashHTML + '</span> ' + each.labelHTML +
        (known ? ': <b>' + each.yHTML + '</b>' : '');
    });
    return (known ? data.xHTML + ': ' : '') + parts.join(' ');
  }
  // What of a chart is shown, where that is not all of it; to be given to updateOptions of the chart that takes its place.
  function zoomOf(chart) {
    var zoom = null;
    if (chart && chart.isZoomed('x')) zoom = { dateWindow: chart.xAxisRange() };
    if (chart && chart.isZoomed('y')) (zoom = zoom || {}).valueRange = chart.yAxisRange(0);
    return zoom;
  }
  // A chart that has the focus: + and - zoom, arrows move, 0 shows all.
  function zoomByKeys(box, chartOf) {
    box.tabIndex = 0;
    box.setAttribute('role', 'img');
    box.onkeydown = function (event) {
      var chart = chartOf();
      if (!chart || event.ctrlKey || event.metaKey || event.altKey) return;
      var range = chart.xAxisRange(), all = chart.xAxisExtremes();
      var middle = (range[0] + range[1]) / 2, half = (range[1] - range[0]) / 2;
      if (event.key === '+' || event.key === '=') half /= 2;
      else if (event.key === '-') half *= 2;
      else if (event.key === 'ArrowLeft') middle -= half / 2;
      else if (event.key === 'ArrowRight') middle += half / 2;
      else if (event.key !== '0') return;
      event.preventDefault();
      if (event.key === '0' || 2 * half >= all[1] - all[0]) {
        chart.resetZoom();
        return;
      }
      middle = Math.max(all[0] + half, Math.min(all[1] - half, middle));
      chart.updateOptions({ dateWindow: [middle - half, middle + half] });
    };
  }
  return { legend: legend, zoomOf: zoomOf, zoomByKeys: zoomByKeys, dark: dark, show: show, tick: tick, colour: colour, lineColour: lineColour, make: make, pressable: pressable,
    title: title, isSquare: isSquare, unit: unit, bytes: bytes, unpack: unpack };
}());
