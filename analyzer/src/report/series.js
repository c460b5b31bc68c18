// The series of a page as they are drawn. Whole ones come as arrays; of the layers that do not stand out a large page has
// means in bytes, decoded when they are looked at. Of squares of norms, the norms are drawn.
tycho.series = (function () {
  'use strict';
  function roots(values) {
    return values && values.map(function (v) { return v === null || v < 0 ? null : Math.sqrt(v); });
  }
  function Levels(owner, id, place) {
    this.owner = owner;
    this.id = id;
    this.place = place;
    this.stride = owner.rest.stride;
    this.levels = true;
    var data = owner.data;
    var layers = owner.entry.scope === 'layers';
    this.name = layers ? data.layers.rows[id].name : data.parameters[id][0];
    this.scope = layers ? 'layer:' + data.layers.rows[id].path : 'param:' + this.name;
  }
  Levels.prototype.decode = function () {
    var rest = this.owner.rest;
    var low = rest.low[this.place], high = rest.high[this.place];
    var logarithmic = low > 0 && high > 20 * low;
    var root = tycho.isSquare(this.owner.entry.statistic);
    var mean = [], broken = [];
    for (var c = 0; c < rest.columns; c++) {
      var level = this.owner.bytes[this.place * rest.columns + c];
      if (level === 255) broken.push(c);
      if (level === 0 || level === 255) {
        mean.push(null);
        continue;
      }
      var share = (level - 1) / 253;
      var v = logarithmic ? low * Math.pow(high / low, share) : low + (high - low) * share;
      mean.push(root ? (v < 0 ? null : Math.sqrt(v)) : v);
    }
    Object.defineProperty(this, 'mean', { value: mean });
    Object.defineProperty(this, 'not_finite', { value: broken });
  };
  ['mean', 'not_finite'].forEach(function (name) {
    Object.defineProperty(Levels.prototype, name, { configurable: true, get: function () {
      this.decode();
      return this[name];
    } });
  });
  function whole(entry, raw) {
    var root = tycho.isSquare(entry.statistic);
    var low = null, high = null;
    if (raw.half_width) {
      low = raw.mean.map(function (m, b) { return m === null ? null : m - (raw.half_width[b] || 0); });
      high = raw.mean.map(function (m, b) { return m === null ? null : m + (raw.half_width[b] || 0); });
      if (root) low = low.map(function (v) { return v === null ? null : Math.max(0, v); });
    }
    return { name: raw.name, scope: raw.scope, id: raw.id, stride: 1, not_finite: raw.not_finite || [],
      mean: root ? roots(raw.mean) : raw.mean, min: root ? roots(raw.min) : raw.min, max: root ? roots(raw.max) : raw.max,
      low: root ? roots(low) : low, high: root ? roots(high) : high, has_interval: raw.half_width };
  }
  // Fills `entry.all`, in the order of the model.
  function expand(data, entry) {
    entry.all = entry.entities.map(function (raw) { return whole(entry, raw); });
    if (!entry.rest) return;
    var owner = { data: data, entry: entry, rest: entry.rest, bytes: tycho.bytes(entry.rest.bytes) };
    entry.rest.of.forEach(function (id, place) { entry.all.push(new Levels(owner, id, place)); });
    entry.all.sort(function (a, b) { return a.id - b.id; });
  }
  // The value of a stretch of the run; null between the stretches of one that has longer ones.
  function at(entity, b) {
    if (!entity || b % entity.stride) return null;
    var v = entity.mean[b / entity.stride];
    return v === undefined ? null : v;
  }
  // Orders of magnitude need a logarithmic axis, and zeros or signs forbid one.
  function wide(entities) {
    var low = Infinity, high = 0, positive = true;
    entities.forEach(function (entity) {
      entity.mean.forEach(function (v) {
        if (v === null || v === undefined) return;
        if (v <= 0) positive = false;
        low = Math.min(low, v);
        high = Math.max(high, v);
      });
    });
    return positive && high > 100 * low;
  }
  // At most `most` of them: those that stand out, and others at even distances.
  function some(data, entry, most) {
    if (entry.all.length <= most) return entry.all;
    var out = {};
    if (entry.scope === 'layers') data.layers.standing_out.slice(0, most / 4).forEach(function (each) { out[each.layer] = true; });
    var every = entry.all.length / (most - Object.keys(out).length);
    var next = 0;
    return entry.all.filter(function (entity, i) {
      if (i >= next) {
        next += every;
        return true;
      }
      return out[entity.id];
    });
  }
  return { expand: expand, at: at, wide: wide, some: some };
}());
