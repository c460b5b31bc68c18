tycho.unpack(document.getElementById('data'), function (data) {
  'use strict';
  var statistic = document.getElementById('statistic');
  var layer = document.getElementById('layer');
  var along = document.getElementById('along');
  var xscale = document.getElementById('xscale');
  var yscale = document.getElementById('yscale');
  var svgSpace = 'http://www.w3.org/2000/svg';
  var dashes = ['', '7 3', '2 3', '9 3 2 3', '4 2', '12 4'];
  var marks = ['circle', 'square', 'triangle', 'diamond', 'cross', 'plus'];

  var show = tycho.tick;
  function colour(group) { return tycho.lineColour(data.groups.length > 1 ? group / (data.groups.length - 1) : 0.3); }
  function element(parent, name, attributes, text) {
    var node = document.createElementNS(svgSpace, name);
    Object.keys(attributes).forEach(function (key) { node.setAttribute(key, attributes[key]); });
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  // Where a run stands at a step, in what runs are laid over each other by.
  function position(run, step) {
    if (along.value === 'step') return step;
    var map = data.runs[run].map;
    var to = map[along.value];
    if (!to || !to.length) return null;
    var s = map.step;
    for (var i = 0; i < s.length; i++) {
      if (s[i] < step) continue;
      if (to[i] === null) return null;
      if (i === 0 || s[i] === step) return to[i];
      return to[i - 1] + (to[i] - to[i - 1]) * (step - s[i - 1]) / (s[i] - s[i - 1]);
    }
    return to[to.length - 1];
  }
  function lines(entry, name) {
    var all = [];
    entry.runs.forEach(function (item) {
      var values = entry.layers ? item.y[name] : item.y;
      if (!values) return;
      var points = [];
      values.forEach(function (y, i) {
        if (y === null) return;
        if (tycho.isSquare(entry.statistic)) y = Math.sqrt(Math.max(0, y));
        var x = position(item.run, item.step[i]);
        if (x !== null && x !== undefined && isFinite(x)) points.push([x, y]);
      });
      if (points.length) all.push({ run: item.run, group: data.runs[item.run].group, points: points });
    });
    return all;
  }
  function scaleOf(values, choice) {
    var low = Infinity, high = -Infinity, positive = true;
    values.forEach(function (v) {
      if (v <= 0) positive = false;
      low = Math.min(low, v);
      high = Math.max(high, v);
    });
    var log = choice === 'log' || (choice === 'auto' && positive && high > 8 * low);
    if (log) {
      low = Infinity;
      values.forEach(function (v) { if (v > 0) low = Math.min(low, v); });
      if (!isFinite(low)) log = false;
    }
    var f = log ? function (v) { return v > 0 ? Math.log10(v) : null; } : function (v) { return v; };
    var a = f(low), b = f(high);
    if (!log) { a = isFinite(a) ? a : 0; b = isFinite(b) ? b : 1; }
    if (!(b > a)) { var by = log ? 0.3 : Math.abs(a) * 0.1 || 1; a -= by; b += by; }
    var pad = 0.04 * (b - a);
    return { log: log, f: f, low: a - pad, high: b + pad };
  }
  function ticks(scale, count) {
    var out = [];
    if (scale.log) {
      var few = scale.high - scale.low < 2.2;
      var stride = Math.max(1, Math.ceil((scale.high - scale.low) / count));
      for (var d = Math.floor(scale.low); d <= Math.ceil(scale.high); d += stride) {
        (few ? [1, 2, 5] : [1]).forEach(function (k) {
          var at = d + Math.log10(k);
          if (at >= scale.low && at <= scale.high) out.push([at, Math.pow(10, at)]);
        });
      }
      if (out.length >= 2) return out;
      out = [];
    }
    var low = scale.log ? Math.pow(10, scale.low) : scale.low, high = scale.log ? Math.pow(10, scale.high) : scale.high;
    var raw = (high - low) / count;
    var unit = Math.pow(10, Math.floor(Math.log10(raw)));
    var step = [1, 2, 5, 10].map(function (k) { return k * unit; }).filter(function (s) { return s >= raw; })[0];
    var first = Math.ceil(low / step) * step;
    for (var n = 0; n < 2 * count && first + n * step <= high; n++) {
      var v = +(first + n * step).toPrecision(12);
      out.push([scale.log ? Math.log10(v) : v, v]);
    }
    return out;
  }
  function drawMark(parent, kind, x, y, fill) {
    var r = 3.6;
    var shapes = {
      square: 'M' + (x - r) + ' ' + (y - r) + 'h' + 2 * r + 'v' + 2 * r + 'h' + -2 * r + 'z',
      triangle: 'M' + x + ' ' + (y - r - 1) + 'l' + (r + 1) + ' ' + 2 * r + 'h' + -2 * (r + 1) + 'z',
      diamond: 'M' + x + ' ' + (y - r - 1) + 'l' + (r + 1) + ' ' + (r + 1) + 'l' + -(r + 1) + ' ' + (r + 1) + 'l' + -(r + 1) + ' ' + -(r + 1) + 'z',
      cross: 'M' + (x - r) + ' ' + (y - r) + 'l' + 2 * r + ' ' + 2 * r + 'm0 ' + -2 * r + 'l' + -2 * r + ' ' + 2 * r,
      plus: 'M' + (x - r) + ' ' + y + 'h' + 2 * r + 'm' + -r + ' ' + -r + 'v' + 2 * r
    };
    if (kind === 'circle') element(parent, 'circle', { cx: x, cy: y, r: r, fill: fill });
    else element(parent, 'path', { d: shapes[kind], fill: kind === 'cross' || kind === 'plus' ? 'none' : fill, stroke: fill, 'stroke-width': 1.8 });
  }
  // Runs of a group are thin; its geometric or arithmetic mean is not drawn, as every run is evidence. Each group is named
  // where its first run ends, with a mark and a pattern of its own.
  function draw(svg, entry, name, size) {
    svg.textContent = '';
    svg.setAttribute('viewBox', '0 0 ' + size.width + ' ' + size.height);
    var all = lines(entry, name);
    var left = 58, right = size.labels, top = 10, bottom = size.axis ? 40 : 24;
    if (!all.length) {
      element(svg, 'text', { x: left, y: size.height / 2 }, 'not recorded' + (along.value === 'step' ? '' : ' against ' + along.value));
      return;
    }
    var xs = [], ys = [];
    all.forEach(function (line) { line.points.forEach(function (p) { xs.push(p[0]); ys.push(p[1]); }); });
    var x0 = Math.min.apply(null, xs);
    var shifted = x0 <= 0;
    var sx = scaleOf(shifted ? xs.map(function (x) { return x + 1; }) : xs, xscale.value === 'log' ? 'log' : xscale.value);
    var sy = scaleOf(ys, yscale.value);
    function px(x) {
      var v = sx.f(sx.log && shifted ? x + 1 : shifted ? x + 1 : x);
      return v === null ? null : left + (v - sx.low) / (sx.high - sx.low) * (size.width - left - right);
    }
    function py(y) {
      var v = sy.f(y);
      return v === null ? null : size.height - bottom - (v - sy.low) / (sy.high - sy.low) * (size.height - top - bottom);
    }
    ticks(sx, size.ticks).forEach(function (t) {
      var x = left + (t[0] - sx.low) / (sx.high - sx.low) * (size.width - left - right);
      element(svg, 'path', { class: 'grid', d: 'M' + x + ' ' + top + 'V' + (size.height - bottom) });
      element(svg, 'text', { x: x, y: size.height - bottom + 15, 'text-anchor': 'middle' }, show(t[1]));
    });
    ticks(sy, Math.max(3, size.ticks - 2)).forEach(function (t) {
      var y = size.height - bottom - (t[0] - sy.low) / (sy.high - sy.low) * (size.height - top - bottom);
      element(svg, 'path', { class: 'grid', d: 'M' + left + ' ' + y + 'H' + (size.width - right) });
      element(svg, 'text', { x: left - 6, y: y + 4, 'text-anchor': 'end' }, show(t[1]));
    });
    if (size.axis) {
      var named = along.value === 'time' ? 'seconds' : along.value === 'examples' ? 'examples seen' : 'step';
      element(svg, 'text', { x: (left + size.width - right) / 2, y: size.height - 6, 'text-anchor': 'middle' },
        named + (shifted && sx.log ? ' + 1' : ''));
    }
    var ends = [];
    var seen = {};
    all.forEach(function (line) {
      var path = '', last = null;
      line.points.forEach(function (p) {
        var x = px(p[0]), y = py(p[1]);
        if (x === null || y === null) return;
        path += (path ? 'L' : 'M') + x.toFixed(1) + ' ' + y.toFixed(1);
        last = [x, y];
      });
      if (!last) return;
      var group = line.group;
      var stroke = colour(group);
      var first = !seen[group];
      var node = element(svg, 'path', { class: 'run', d: path, stroke: stroke, 'stroke-width': size.thin, 'data-group': group,
        'stroke-dasharray': dashes[group % dashes.length] });
      element(node, 'title', {}, data.runs[line.run].label);
      if (first || size.axis) drawMark(svg, marks[group % marks.length], last[0], last[1], stroke);
      if (!first) return;
      seen[group] = true;
      ends.push({ group: group, x: last[0], y: last[1], at: last[1] });
    });
    if (!size.labels || size.labels < 40) return;
    var fits = Math.floor((size.labels - 22) / 7);  // letters
    // Labels move apart where lines end together.
    ends.sort(function (a, b) { return a.at - b.at; });
    var gap = Math.min(15, (size.height - top - bottom) / Math.max(1, ends.length));
    for (var i = 1; i < ends.length; i++) ends[i].at = Math.max(ends[i].at, ends[i - 1].at + gap);
    var over = ends.length ? ends[ends.length - 1].at - (size.height - bottom) : 0;
    if (over > 0) {
      ends[ends.length - 1].at -= over;
      for (i = ends.length - 2; i >= 0; i--) ends[i].at = Math.min(ends[i].at, ends[i + 1].at - gap);
    }
    ends.forEach(function (end) {
      var x = size.width - right + 16;
      element(svg, 'path', { class: 'leader', d: 'M' + (end.x + 5) + ' ' + end.y + 'L' + (x - 6) + ' ' + end.at + 'h4' });
      var label = data.groups[end.group].label;
      drawMark(svg, marks[end.group % marks.length], x + 1, end.at, colour(end.group));
      var text = element(svg, 'text', { x: x + 10, y: end.at + 4, 'data-group': end.group }, label.length > fits ? label.slice(0, fits - 1) + '\u2026' : label);
      element(text, 'title', {}, label);
      text.onmouseenter = function () { dim(svg, end.group); };
      text.onmouseleave = function () { dim(svg, null); };
    });
  }
  function dim(svg, group) {
    Array.prototype.forEach.call(svg.querySelectorAll('.run'), function (node) {
      node.classList.toggle('dim', group !== null && Number(node.dataset.group) !== group);
    });
  }
  function current() { return data.series[statistic.selectedIndex]; }
  function fillLayers() {
    var entry = current();
    layer.textContent = '';
    layer.parentNode.style.display = entry.layers ? '' : 'none';
    (entry.layers || []).forEach(function (name) {
      var option = document.createElement('option');
      option.textContent = name || '(root)';
      option.value = name;
      layer.appendChild(option);
    });
  }
  var drawnWidth = 0;
  window.addEventListener('resize', function () {
    if (Math.abs(document.getElementById('chart').getBoundingClientRect().width - drawnWidth) > 1) drawMain();
  });
  function drawMain() {
    var entry = current();
    document.getElementById('title').textContent = tycho.title(entry.statistic) + (entry.layers ? ' of ' + (layer.value || '(root)') : '') +
      tycho.unit(entry);
    document.getElementById('definition').textContent = entry.definition;
    // A unit of the drawing is a pixel, so that text has its size on a narrow screen too.
    var svg = document.getElementById('chart');
    drawnWidth = Math.max(280, Math.round(svg.getBoundingClientRect().width)) || 1130;
    draw(svg, entry, layer.value, { width: drawnWidth, height: Math.max(300, Math.min(430, drawnWidth * 0.6)),
      labels: Math.min(260, Math.round(0.34 * drawnWidth)), ticks: Math.max(3, Math.min(8, Math.floor(drawnWidth / 140))), axis: true, thin: 1.7 });
  }
  function drawOverview() {
    var place = document.getElementById('multiples');
    place.textContent = '';
    data.overview.forEach(function (index) {
      var entry = data.series[index];
      if (entry.layers) return;
      var figure = tycho.make('figure', null, place);
      tycho.make('figcaption', tycho.title(entry.statistic) + tycho.unit(entry), figure);
      figure.title = entry.definition;
      var svg = document.createElementNS(svgSpace, 'svg');
      svg.setAttribute('class', 'overlay');
      figure.appendChild(svg);
      draw(svg, entry, null, { width: 330, height: 190, labels: 14, ticks: 4, axis: false, thin: 1.3 });
      tycho.pressable(figure, function () {
        statistic.selectedIndex = index;
        fillLayers();
        drawMain();
        document.getElementById('views').scrollIntoView();
      });
    });
  }
  if (!data.series.length) {
    document.getElementById('views').textContent = 'No statistic was recorded.';
    return;
  }
  data.series.forEach(function (entry) {
    var option = document.createElement('option');
    option.textContent = tycho.title(entry.statistic) + (entry.layers ? ' (layers)' : '');
    statistic.appendChild(option);
  });
  along.value = data.by;
  statistic.selectedIndex = data.overview.length ? data.overview[0] : 0;
  statistic.onchange = function () { fillLayers(); drawMain(); };
  layer.onchange = drawMain;
  [along, xscale, yscale].forEach(function (control) {
    control.onchange = function () { drawMain(); drawOverview(); };
  });
  fillLayers();
  drawMain();
  drawOverview();
});
