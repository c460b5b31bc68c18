// Layer against step: a row for each layer, or for each group of layers, which opens.
tycho.heat = function (state) {
  'use strict';
  var canvas = document.getElementById('heat');
  var list = document.getElementById('rows');
  var grouping = document.getElementById('grouping');
  var opened = {};
  var rows = [];

  function groupOf(entity) {
    var data = state.data(), entry = state.entry();
    var layer = entry.scope === 'layers' ? entity.id : entry.scope === 'parameters' && data.parameters[entity.id] ?
      data.parameters[entity.id][1] : -1;
    var row = data.layers.rows[layer];
    if (!row) return '';
    if (grouping.value === 'block') return row.block;
    var role = entry.scope === 'parameters' ? '.' + entity.name.split('.').pop() : '';
    return row.kind + role;
  }
  // Of a group the median of its members, stretch by stretch.
  function median(members) {
    var columns = members.reduce(function (most, e) { return Math.max(most, e.mean.length * e.stride); }, 0);
    var stride = members.reduce(function (most, e) { return Math.max(most, e.stride); }, 1);
    var mean = [], broken = {};
    for (var b = 0; b < columns; b += stride) {
      var seen = [];
      members.forEach(function (e) {
        var v = e.mean[Math.floor(b / e.stride)];
        if (v !== null && v !== undefined) seen.push(v);
      });
      seen.sort(function (x, y) { return x - y; });
      mean.push(seen.length ? seen[seen.length >> 1] : null);
    }
    members.forEach(function (e) { e.not_finite.forEach(function (c) { broken[Math.floor(c * e.stride / stride)] = true; }); });
    return { mean: mean, stride: stride, not_finite: Object.keys(broken).map(Number) };
  }
  function layOut() {
    var all = state.entry().all;
    rows = [];
    if (grouping.value === 'none') {
      all.forEach(function (entity, i) { rows.push({ entity: entity, place: i, name: entity.name }); });
      return;
    }
    var order = [], groups = {};
    all.forEach(function (entity, i) {
      var key = groupOf(entity) || entity.name;
      if (!groups[key]) order.push(key);
      (groups[key] = groups[key] || []).push(i);
    });
    order.forEach(function (key) {
      var members = groups[key];
      if (members.length === 1) {
        rows.push({ entity: all[members[0]], place: members[0], name: all[members[0]].name });
        return;
      }
      var open = !!opened[key];
      rows.push({ group: key, open: open, entity: median(members.map(function (i) { return all[i]; })),
        name: (open ? '\u25be ' : '\u25b8 ') + key + ' \u00d7 ' + members.length });
      if (open) members.forEach(function (i) { rows.push({ entity: all[i], place: i, name: all[i].name, inner: true }); });
    });
  }
  // A value stands until the next one: a statistic that is measured now and then has no holes.
  function held(entity, width) {
    var out = new Array(width).fill(null);
    var last = null, until = -1;
    entity.mean.forEach(function (v, c) { if (v !== null && v !== undefined) until = (c + 1) * entity.stride; });
    for (var b = 0; b < Math.min(width, until); b++) {
      var v = entity.mean[Math.floor(b / entity.stride)];
      if (v !== null && v !== undefined) last = v;
      out[b] = last;
    }
    return out;
  }
  function draw() {
    layOut();
    var data = state.data();
    var logarithmic = state.logarithmic(state.entry().all);
    var low = Infinity, high = -Infinity;
    rows.forEach(function (row) {
      row.entity.mean.forEach(function (v) {
        if (v === null || v === undefined || (logarithmic && v <= 0)) return;
        low = Math.min(low, v);
        high = Math.max(high, v);
      });
    });
    var scale = logarithmic ? Math.log10 : function (v) { return v; };
    var a = scale(low), b = scale(high);
    var width = Math.max(1, data.buckets), height = Math.max(1, rows.length);
    canvas.width = width;
    canvas.height = height;
    var rowHeight = Math.max(14, Math.min(26, Math.floor(520 / height)));
    canvas.style.height = rowHeight * height + 'px';
    var context = canvas.getContext('2d');
    var image = context.createImageData(width, height);
    rows.forEach(function (row, r) {
      var values = held(row.entity, width);
      for (var c = 0; c < width; c++) {
        var v = values[c];
        if (v === null || (logarithmic && v <= 0)) continue;
        paint(image, r * width + c, tycho.colour(b > a ? (scale(v) - a) / (b - a) : 0.5));
      }
      row.entity.not_finite.forEach(function (bad) {
        for (var c = bad * row.entity.stride; c < Math.min(width, (bad + 1) * row.entity.stride); c++) paint(image, r * width + c, [213, 94, 0]);
      });
    });
    context.putImageData(image, 0, 0);
    list.textContent = '';
    rows.forEach(function (row, r) {
      var div = tycho.make('div', null, list);
      // The end of a path tells more than its begin: what is cut off is cut off on the left.
      tycho.make('bdi', row.name, div).dir = 'ltr';
      div.title = row.name;
      div.style.height = div.style.lineHeight = rowHeight + 'px';
      div.className = (row.group ? 'group' : '') + (row.inner ? ' inner' : '') + (row.place === state.chosen() ? ' chosen' : '');
      tycho.pressable(div, function () { press(r); });
      if (row.group) div.setAttribute('aria-expanded', String(row.open));
      else div.setAttribute('aria-pressed', String(row.place === state.chosen()));
      var enter = div.onkeydown;
      div.onkeydown = function (event) {
        var to = event.key === 'ArrowDown' ? div.nextElementSibling : event.key === 'ArrowUp' ? div.previousElementSibling : null;
        if (!to) return enter(event);
        event.preventDefault();
        to.focus();
      };
    });
    document.getElementById('low').textContent = isFinite(low) ? tycho.show(low) : '';
    document.getElementById('high').textContent = isFinite(high) ? tycho.show(high) : '';
    document.getElementById('from').textContent = 'step ' + data.first_step;
    document.getElementById('to').textContent = 'step ' + data.last_step;
  }
  function paint(image, at, rgb) {
    image.data[4 * at] = rgb[0];
    image.data[4 * at + 1] = rgb[1];
    image.data[4 * at + 2] = rgb[2];
    image.data[4 * at + 3] = 255;
  }
  function press(r) {
    var row = rows[r];
    if (!row) return;
    if (row.group) {
      opened[row.group] = !row.open;
      draw();
    } else {
      state.choose(row.place);
    }
    if (list.children[r]) list.children[r].focus({ preventScroll: true });
  }
  // The row of a series is to be seen.
  function reveal(place) {
    var entity = state.entry().all[place];
    if (entity && grouping.value !== 'none') opened[groupOf(entity) || entity.name] = true;
  }
  canvas.onclick = function (event) {
    var box = canvas.getBoundingClientRect();
    press(Math.min(rows.length - 1, Math.floor((event.clientY - box.top) / box.height * rows.length)));
  };
  grouping.onchange = draw;
  var ramp = document.getElementById('ramp');
  var paper = ramp.getContext('2d');
  for (var i = 0; i < ramp.width; i++) {
    paper.fillStyle = 'rgb(' + tycho.colour(i / (ramp.width - 1)).join(',') + ')';
    paper.fillRect(i, 0, 1, ramp.height);
  }
  return { draw: draw, reveal: reveal, regroup: function (count) { grouping.value = count > 64 ? 'kind' : 'none'; } };
};
