(function () {
  'use strict';
  var data = JSON.parse(document.getElementById('data').textContent);
  var statistic = document.getElementById('statistic');
  var scale = document.getElementById('scale');
  var rows = document.getElementById('rows');
  var heat = document.getElementById('heat');
  var chosen = 0;
  var chart = null;

  function step(bucket) { return data.first_step + bucket * data.steps_per_bucket; }
  function show(value) {
    if (value === null || value === undefined || !isFinite(value)) return '';
    var size = Math.abs(value);
    return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(3).replace(/\.?0+e/, 'e') : String(+value.toPrecision(4));
  }
  function current() { return data.series[statistic.selectedIndex]; }
  function values(entities) {
    var all = [];
    entities.forEach(function (entity) {
      entity.mean.forEach(function (v) { if (v !== null && v !== undefined) all.push(v); });
    });
    return all;
  }
  // Orders of magnitude need a logarithmic axis, and zeros or signs forbid one.
  function wide(entities) {
    var low = Infinity, high = 0, positive = true;
    values(entities).forEach(function (v) {
      if (v <= 0) positive = false;
      low = Math.min(low, v);
      high = Math.max(high, v);
    });
    return positive && high > 100 * low;
  }
  function isLogarithmic(entities) {
    return scale.value === 'log' || (scale.value === 'auto' && wide(entities));
  }

  // Perceptually even from dark to light, so that it can be read without colour too (viridis, sampled).
  var stops = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
    [170, 220, 50], [253, 231, 37]];
  function colour(t) {
    var at = Math.max(0, Math.min(1, t)) * (stops.length - 1);
    var i = Math.min(stops.length - 2, Math.floor(at));
    return stops[i].map(function (c, k) { return Math.round(c + (stops[i + 1][k] - c) * (at - i)); });
  }
  function drawHeat() {
    var entry = current();
    var logarithmic = isLogarithmic(entry.entities);
    var low = Infinity, high = -Infinity;
    entry.entities.forEach(function (entity) {
      entity.mean.forEach(function (v) {
        if (v === null || (logarithmic && v <= 0)) return;
        var x = logarithmic ? Math.log10(v) : v;
        low = Math.min(low, x);
        high = Math.max(high, x);
      });
    });
    var width = Math.max(1, data.buckets);
    var height = entry.entities.length;
    heat.width = width;
    heat.height = height;
    var rowHeight = Math.max(12, Math.min(26, Math.floor(520 / height)));
    heat.style.height = rowHeight * height + 'px';
    var context = heat.getContext('2d');
    var image = context.createImageData(width, height);
    for (var r = 0; r < height; r++) {
      var m = entry.entities[r].mean;
      var broken = entry.entities[r].not_finite || [];
      for (var b = 0; b < width; b++) {
        var v = b < m.length ? m[b] : null;
        var at = 4 * (r * width + b);
        if (broken.indexOf(b) >= 0) {
          image.data[at] = 213; image.data[at + 1] = 94; image.data[at + 2] = 0; image.data[at + 3] = 255;
          continue;
        }
        if (v === null || v === undefined || (logarithmic && v <= 0)) { image.data[at + 3] = 0; continue; }
        var x = logarithmic ? Math.log10(v) : v;
        var rgb = colour(high > low ? (x - low) / (high - low) : 0.5);
        image.data[at] = rgb[0]; image.data[at + 1] = rgb[1]; image.data[at + 2] = rgb[2]; image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    rows.textContent = '';
    entry.entities.forEach(function (entity, r) {
      var div = document.createElement('div');
      div.textContent = entity.name;
      div.title = entity.name;
      div.style.height = rowHeight + 'px';
      div.style.lineHeight = rowHeight + 'px';
      if (r === chosen) div.className = 'chosen';
      div.onclick = function () { choose(r); };
      rows.appendChild(div);
    });
    document.getElementById('low').textContent = isFinite(low) ? show(logarithmic ? Math.pow(10, low) : low) : '';
    document.getElementById('high').textContent = isFinite(high) ? show(logarithmic ? Math.pow(10, high) : high) : '';
    document.getElementById('from').textContent = 'step ' + step(0);
    document.getElementById('to').textContent = 'step ' + data.last_step;
  }
  function drawChart() {
    var entry = current();
    var entity = entry.entities[chosen];
    var prediction = data.predictions.filter(function (p) {
      return p.statistic === entry.statistic && p.scope === entity.scope;
    })[0];
    var interval = entity.half_width;
    var spread = !interval && entity.min;
    var labels = ['step', interval ? 'mean with its 95 % interval' :
      spread ? 'mean; band: from least to largest of the steps it stands for' : 'value'];
    if (prediction) labels.push('predicted: ' + prediction.law);
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var mean = b < entity.mean.length ? entity.mean[b] : null;
      var cell = [null, null, null];
      if (mean !== null && mean !== undefined) {
        var half = interval && interval[b] !== null ? interval[b] : 0;
        cell = spread ? [entity.min[b], mean, entity.max[b]] : [mean - half, mean, mean + half];
      }
      var row = [step(b), cell];
      if (prediction) row.push([prediction.level, prediction.level, prediction.level]);
      points.push(row);
    }
    document.getElementById('title').textContent = entry.statistic + ' of ' + entity.name +
      (entry.unit && entry.unit !== '1' ? ' [' + entry.unit + ']' : '');
    document.getElementById('definition').textContent = entry.definition;
    var logarithmic = isLogarithmic([entity]);
    if (chart) chart.destroy();
    chart = new Dygraph(document.getElementById('chart'), points, {
      labels: labels, customBars: true, logscale: logarithmic, connectSeparatedPoints: true,
      colors: ['#0072b2', '#d55e00'], strokeWidth: 1.8, fillAlpha: 0.22, drawPoints: values([entity]).length < 60, pointSize: 2.5,
      xlabel: 'step', axisLabelFontSize: 12, gridLineColor: 'rgba(128,128,128,.25)', legend: 'always',
      series: prediction ? seriesStyle(labels[2]) : {},
      axes: { y: { axisLabelFormatter: show, valueFormatter: show, axisLabelWidth: 70 } }
    });
    var body = document.getElementById('values');
    body.textContent = '';
    for (b = 0; b < data.buckets; b++) {
      var m = b < entity.mean.length ? entity.mean[b] : null;
      var bad = (entity.not_finite || []).indexOf(b) >= 0;
      if ((m === null || m === undefined) && !bad) continue;
      var tr = document.createElement('tr');
      var h = interval && interval[b] !== null ? interval[b] : null;
      [step(b), show(m), h === null ? '' : '[' + show(m - h) + ', ' + show(m + h) + ']',
        show(entity.min ? entity.min[b] : m), show(entity.max ? entity.max[b] : m), bad ? 'yes' : '']
        .forEach(function (text) {
          var td = document.createElement('td');
          td.className = 'number';
          td.textContent = text;
          tr.appendChild(td);
        });
      body.appendChild(tr);
    }
  }
  function seriesStyle(label) {
    var style = {};
    style[label] = { strokePattern: [7, 4], strokeWidth: 2, drawPoints: false };
    return style;
  }
  function choose(row) {
    chosen = row;
    drawHeat();
    drawChart();
  }
  function select() {
    chosen = 0;
    drawHeat();
    drawChart();
  }
  // Small charts of what is worth a first look; only of what was recorded.
  var overview = ['loss', 'probe_loss', 'learning_rate', 'grad_norm_sq', 'weight_norm_sq', 'update_norm_sq', 'angular_update',
    'noise_scale', 'activation_rms', 'activation_grad_rms', 'dead_fraction', 'adam_update_rms', 'feature_change_relative',
    'batch_sharpness', 'critical_sharpness', 'sharpness', 'probe_error'];
  var small = {};  // charts by statistic
  function smallPoints(entities) {
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var row = [step(b)].concat(entities.map(function (entity) { return at(entity, b); }));
      if (row.slice(1).some(function (v) { return v !== null; })) points.push(row);
    }
    return points;
  }
  // `changed`: by index, the series that are to be drawn again; undefined: all.
  function drawOverview(changed) {
    var place = document.getElementById('multiples');
    overview.forEach(function (name) {
      var candidates = data.series.filter(function (entry) { return entry.statistic === name; });
      if (!candidates.length) return;
      var entry = candidates[0];
      if (changed && !changed[data.series.indexOf(entry)]) return;
      var entities = entry.entities.slice(0, 80);
      var points = smallPoints(entities);
      if (points.length < 2) return;
      if (small[name]) {
        small[name].updateOptions({ file: points, logscale: wide(entities) });
        return;
      }
      var figure = document.createElement('figure');
      var caption = document.createElement('figcaption');
      caption.textContent = name.replace(/_/g, ' ') + (entry.unit && entry.unit !== '1' ? ' [' + entry.unit + ']' : '');
      var box = document.createElement('div');
      box.className = 'small';
      figure.appendChild(caption);
      figure.appendChild(box);
      figure.title = entry.definition;
      place.appendChild(figure);
      small[name] = new Dygraph(box, points, {
        labels: ['step'].concat(entities.map(function (entity) { return entity.name; })),
        logscale: wide(entities), legend: 'never', connectSeparatedPoints: true, strokeWidth: 1.3,
        drawPoints: points.length < 30, pointSize: 2, interactionModel: {}, axisLabelFontSize: 11,
        gridLineColor: 'rgba(128,128,128,.22)', highlightCircleSize: 0,
        colors: entities.map(function (entity, i) {
          return entities.length === 1 ? '#0072b2' :
            'rgb(' + colour(0.85 * i / (entities.length - 1)).join(',') + ')';
        }),
        axes: { y: { axisLabelFormatter: show, axisLabelWidth: 52 }, x: { axisLabelWidth: 44, pixelsPerLabel: 60 } }
      });
      figure.onclick = function () {
        statistic.selectedIndex = data.series.indexOf(entry);
        select();
        document.getElementById('views').scrollIntoView();
      };
    });
    document.getElementById('overview').style.display = place.children.length ? '' : 'none';
  }
  function find(name, scope) {
    return data.series.filter(function (entry) { return entry.statistic === name && (!scope || entry.scope === scope); })[0];
  }
  function box(title) {
    var figure = document.createElement('figure');
    var caption = document.createElement('figcaption');
    caption.textContent = title;
    var div = document.createElement('div');
    div.className = 'small';
    figure.appendChild(caption);
    figure.appendChild(div);
    document.getElementById('curves').appendChild(figure);
    return div;
  }
  var curves = [];
  function curve(title, points, options) {
    if (points.length < 2) return;
    var common = {
      connectSeparatedPoints: true, strokeWidth: 1.6, fillAlpha: 0.22, drawPoints: points.length < 60, pointSize: 2, legend: 'always',
      axisLabelFontSize: 11, gridLineColor: 'rgba(128,128,128,.22)',
      axes: { y: { axisLabelFormatter: show, valueFormatter: show, axisLabelWidth: 60 }, x: { valueFormatter: show } }
    };
    Object.keys(options).forEach(function (key) { common[key] = options[key]; });
    curves.push(new Dygraph(box(title), points, common));
  }
  function at(entity, b) {
    var v = entity && b < entity.mean.length ? entity.mean[b] : null;
    return v === undefined ? null : v;
  }
  // The sharpness that the optimizer feels against the largest it can stand, which moves with the learning rate.
  function drawEdge() {
    var sharpness = find('preconditioned_sharpness', 'run');
    var threshold = find('stability_threshold', 'run');
    if (!sharpness) return;
    var bound = find('preconditioned_sharpness_error_bound', 'run');
    var entities = [sharpness.entities[0]].concat(threshold ? [threshold.entities[0]] : []);
    var labels = ['step', bound ? 'sharpness with its error bound' : 'sharpness'];
    if (threshold) labels.push('edge of stability');
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var s = at(entities[0], b);
      if (s === null) continue;
      var half = bound ? at(bound.entities[0], b) || 0 : 0;
      var row = [step(b), [s - half, s, s + half]];
      var t = threshold ? at(entities[1], b) : null;
      if (threshold) row.push([t, t, t]);
      points.push(row);
    }
    curve('sharpness, as the optimizer feels it, and the edge of stability', points, {
      labels: labels, customBars: true, logscale: wide(entities), colors: ['#0072b2', '#d55e00'],
      series: threshold ? seriesStyle(labels[2]) : {}
    });
  }
  function drawMany(title, entry, options) {
    if (!entry) return;
    var entities = entry.entities.slice(0, 40);
    var points = [];
    for (var b = 0; b < data.buckets; b++) {
      var row = [step(b)].concat(entities.map(function (entity) { return at(entity, b); }));
      if (row.slice(1).some(function (v) { return v !== null; })) points.push(row);
    }
    options.labels = ['step'].concat(entities.map(function (entity) { return entity.name; }));
    options.colors = entities.map(function (entity, i) {
      return 'rgb(' + colour(entities.length > 1 ? 0.85 * i / (entities.length - 1) : 0.3).join(',') + ')';
    });
    options.legend = 'onmouseover';
    curve(title, points, options);
  }
  // Each node of the quadrature as a narrow Gaussian, because a density cannot be seen in sticks.
  function drawSpectrum() {
    var nodes = data.spectrum.node, weights = data.spectrum.weight;
    var low = Math.min.apply(null, nodes), high = Math.max.apply(null, nodes);
    if (nodes.length < 2 || !(high > low) || !isFinite(high - low)) return;
    var width = (high - low) / 80;
    var points = [];
    for (var i = 0; i <= 320; i++) {
      var x = low - 4 * width + (high - low + 8 * width) * i / 320;
      var sum = 0;
      for (var k = 0; k < nodes.length; k++) {
        var z = (x - nodes[k]) / width;
        sum += weights[k] * Math.exp(-z * z / 2) / (width * Math.sqrt(2 * Math.PI));
      }
      points.push([x, sum]);
    }
    var top = Math.max.apply(null, points.map(function (p) { return p[1]; }));
    points.forEach(function (p) { p[1] = Math.max(p[1], 1e-10 * top); });  // a logarithm has no 0
    curve('spectral density of the Hessian at step ' + data.spectrum.step, points, {
      labels: ['eigenvalue', 'density'], logscale: top > 0, colors: ['#0072b2'], fillGraph: true, drawPoints: false
    });
  }
  function drawCurvature() {
    if (!document.getElementById('curves')) return;
    curves.splice(0).forEach(function (old) { old.destroy(); });
    document.getElementById('curves').textContent = '';
    drawEdge();
    drawMany('share of the top eigenvector by layer',
      find('preconditioned_eigenvector_share', 'layers') || find('top_eigenvector_share', 'layers'), { stackedGraph: true, valueRange: [0, 1.05] });
    var eigenvalues = find('hessian_eigenvalue', 'positions');
    if (eigenvalues) drawMany('largest eigenvalues of the Hessian', eigenvalues, { logscale: wide(eigenvalues.entities) });
    drawSpectrum();
  }
  if (!data.series.length) {
    document.getElementById('views').textContent = 'No statistic was recorded.';
    document.getElementById('overview').style.display = 'none';
    return;
  }
  function fillChoice() {
    statistic.textContent = '';
    data.series.forEach(function (entry) {
      var option = document.createElement('option');
      option.textContent = entry.statistic + ' (' + entry.scope + ')';
      statistic.appendChild(option);
    });
  }
  fillChoice();
  statistic.onchange = select;
  scale.onchange = select;
  heat.onclick = function (event) {
    var box = heat.getBoundingClientRect();
    choose(Math.min(current().entities.length - 1, Math.floor((event.clientY - box.top) / box.height * heat.height)));
  };
  Array.prototype.forEach.call(document.querySelectorAll('a[data-statistic]'), function (link) {
    link.onclick = function () {
      // The very series, or else the first of the statistic.
      var found = null;
      data.series.forEach(function (entry, i) {
        if (entry.statistic !== link.dataset.statistic) return;
        entry.entities.forEach(function (entity, r) {
          if (!found || (entity.scope === link.dataset.scope && !found.exact))
            found = { series: i, row: r, exact: entity.scope === link.dataset.scope };
        });
      });
      if (!found) return;
      statistic.selectedIndex = found.series;
      choose(found.row);
    };
  });
  var legend = document.getElementById('ramp');
  var ramp = legend.getContext('2d');
  for (var i = 0; i < legend.width; i++) {
    ramp.fillStyle = 'rgb(' + colour(i / (legend.width - 1)).join(',') + ')';
    ramp.fillRect(i, 0, 1, legend.height);
  }
  drawOverview();
  drawCurvature();
  var first = 0;
  ['grad_norm_sq', 'activation_rms', 'loss'].some(function (name) {
    return data.series.some(function (entry, i) {
      if (entry.statistic !== name) return false;
      first = i;
      return true;
    });
  });
  statistic.selectedIndex = first;
  select();

  // A link to a law or to a series: #law=edge_of_stability&layer=2, #statistic=grad_norm_sq&layer=conv1. A layer is its
  // path, or its place among those of the series.
  function go() {
    var wanted = {};
    location.hash.slice(1).split('&').forEach(function (pair) {
      var equals = pair.indexOf('=');
      try {
        if (equals > 0) wanted[pair.slice(0, equals)] = decodeURIComponent(pair.slice(equals + 1));
      } catch (error) { /* no link of ours */ }
    });
    var law = wanted.law && document.getElementById('law-' + wanted.law);
    var name = wanted.statistic;
    if (law) {
      law.open = true;
      var evidence = law.querySelector('a[data-statistic]');
      if (!name && evidence) name = evidence.dataset.statistic;
    }
    if (name || wanted.layer !== undefined) {
      var entry = (name && wanted.layer !== undefined && find(name, 'layers')) || (name && find(name)) || current();
      var row = 0;
      entry.entities.forEach(function (entity, i) {
        if (wanted.layer === entity.name || wanted.layer === String(i)) row = i;
      });
      statistic.selectedIndex = data.series.indexOf(entry);
      choose(row);
    }
    if (law) law.scrollIntoView();
    else if (name) document.getElementById('views').scrollIntoView();
  }
  window.addEventListener('hashchange', go);
  if (location.hash) go();

  // For a page that is brought up to date: what was appended to the series (or all of them anew), drawn where it
  // changed.
  function update(changes, all) {
    var changed = {};
    if (all) {
      var shown = current(), scope = shown.entities[chosen].scope;
      data = all;
      Object.keys(small).forEach(function (name) { small[name].destroy(); });
      small = {};
      document.getElementById('multiples').textContent = '';
      fillChoice();
      statistic.selectedIndex = Math.max(0, data.series.indexOf(find(shown.statistic, shown.scope)));
      chosen = 0;
      current().entities.forEach(function (entity, i) { if (entity.scope === scope) chosen = i; });
      data.series.forEach(function (entry, i) { changed[i] = true; });
    } else {
      Object.keys(changes).forEach(function (key) { if (key !== 'series') data[key] = changes[key]; });
      (changes.series || []).forEach(function (entry) {
        changed[entry.index] = true;
        Object.keys(entry.entities).forEach(function (number) {
          var entity = data.series[entry.index].entities[number];
          var arrays = entry.entities[number];
          Object.keys(arrays).forEach(function (key) {
            if (arrays[key] === null) { delete entity[key]; return; }
            entity[key] = (entity[key] || []).slice(0, arrays[key].from).concat(arrays[key].values);
          });
        });
      });
    }
    drawOverview(changed);
    if (all || changes.spectrum || data.series.some(function (entry, i) {
      return changed[i] && /sharpness|eigenvector|eigenvalue|stability_threshold/.test(entry.statistic);
    })) drawCurvature();
    if (!changed[statistic.selectedIndex]) return;
    var zoom = chart.isZoomed('x') ? chart.xAxisRange() : null;
    drawHeat();
    drawChart();
    if (zoom) chart.updateOptions({ dateWindow: zoom });
  }
  window.tychoPage = { update: update };
}());
