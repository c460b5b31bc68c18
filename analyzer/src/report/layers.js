// The table of layers: what was measured last of each. Those that stand out are listed; the others stand in groups by block,
// closed. Columns sort.
tycho.layers = function (state) {
  'use strict';
  var place = document.getElementById('layer-table');
  var search = document.getElementById('layer-find');
  var by = -2, down = true;  // column: -2 order of the model, -1 weights
  var opened = {};

  function value(row, column) {
    var v = column === -1 ? row.weights : row.values[column];
    return typeof v === 'number' ? v : null;
  }
  function line(body, row, i, why) {
    var tr = tycho.make('tr', null, body);
    var name = tycho.make('td', null, tr);
    name.className = 'name';
    var link = tycho.make('a', row.name, name);
    link.href = '#views';
    link.onclick = function () { state.show(state.columns()[Math.max(0, by)], i); };
    if (why) tycho.make('small', why.join('; '), name);
    [row.weights].concat(row.values).forEach(function (v) { tycho.make('td', tycho.show(v), tr).className = 'number'; });
  }
  function head(table, columns) {
    var tr = tycho.make('tr', null, tycho.make('thead', null, table));
    ['layer', 'weights'].concat(columns.map(function (c) { return c.title; })).forEach(function (text, k) {
      var th = tycho.make('th', null, tr);
      var button = tycho.make('button', text + (by === k - 2 ? (down ? ' \u25be' : ' \u25b4') : ''), th);
      th.setAttribute('aria-sort', by !== k - 2 ? 'none' : down ? 'descending' : 'ascending');
      button.onclick = function () {
        down = by === k - 2 ? !down : true;
        by = k - 2;
        draw();
        place.querySelectorAll('th button')[k].focus();
      };
    });
  }
  function draw() {
    var data = state.data().layers;
    var why = {};
    data.standing_out.forEach(function (each) { why[each.layer] = each.why; });
    var wanted = search.value.toLowerCase();
    var order = data.rows.map(function (row, i) { return i; }).filter(function (i) {
      return data.rows[i].name.toLowerCase().indexOf(wanted) >= 0;
    });
    if (by >= -1) {
      order.sort(function (a, b) {
        var x = value(data.rows[a], by), y = value(data.rows[b], by);
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return (down ? y - x : x - y) || a - b;
      });
    } else if (!down) {
      order.reverse();
    }
    place.textContent = '';
    var table = tycho.make('table', null, place);
    head(table, data.columns);
    var most = 40;
    // Sorted, searched or few: one list. Else what stands out, then blocks that open.
    var few = order.length <= most;
    if (few || by >= -1 || wanted) {
      var body = tycho.make('tbody', null, table);
      order.slice(0, few ? most : 100).forEach(function (i) { line(body, data.rows[i], i, why[i]); });
      if (!few && order.length > 100) tycho.make('p', 'The first 100 of ' + order.length + ' layers.', place).className = 'muted';
      return;
    }
    var out = tycho.make('tbody', null, table);
    data.standing_out.forEach(function (each) { line(out, data.rows[each.layer], each.layer, each.why); });
    var blocks = {};
    order.forEach(function (i) { (blocks[data.rows[i].block] = blocks[data.rows[i].block] || []).push(i); });
    Object.keys(blocks).forEach(function (block) {
      var section = tycho.make('tbody', null, table);
      var cell = tycho.make('td', null, tycho.make('tr', null, section));
      cell.colSpan = data.columns.length + 2;
      var text = block + ': ' + blocks[block].length + (blocks[block].length === 1 ? ' layer' : ' layers');
      var button = tycho.make('button', (opened[block] ? '\u25be ' : '\u25b8 ') + text, cell);
      button.className = 'plain';
      button.setAttribute('aria-expanded', String(!!opened[block]));
      button.onclick = function () {
        opened[block] = !opened[block];
        var at = Array.prototype.indexOf.call(place.querySelectorAll('button.plain'), button);
        draw();
        place.querySelectorAll('button.plain')[at].focus();
      };
      if (opened[block]) blocks[block].forEach(function (i) { line(section, data.rows[i], i, why[i]); });
    });
  }
  search.oninput = draw;
  return { draw: draw };
};
