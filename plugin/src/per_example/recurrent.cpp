#include "per_example/recurrent.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <unordered_map>

namespace tycho::per_example {
namespace {

using Cell = Recurrence::Cell;

/// The weights of one direction of one layer.
struct Weights {
  at::Tensor w_ih, w_hh, b_ih, b_hh, w_hr;
};

/// What one time of one direction leaves for its backward pass.
struct Moment {
  at::Tensor x, h_before, c_before, c;
  at::Tensor z;       // gates after their nonlinearity, side by side; of tanh and relu the state
  at::Tensor hidden;  // gru: the part of the new gate that comes from the state
  at::Tensor raw;     // lstm with projection: the state before it
  at::Tensor d_input_gates, d_state_gates, d_state;
};

/// Rows of each time, in the order of the input.
std::vector<at::Tensor> times(const at::Tensor& rows, const Recurrence& call) {
  if (call.single) return {rows};
  if (!call.batch_sizes.defined()) return rows.unbind(call.batch_first ? 1 : 0);
  std::vector<int64_t> sizes(call.batch_sizes.data_ptr<int64_t>(),
                             call.batch_sizes.data_ptr<int64_t>() + call.batch_sizes.numel());
  return rows.split_with_sizes(sizes, 0);
}

at::Tensor affine(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor product = at::mm(x, weight.t());
  return bias.defined() ? product + bias : product;
}

/// The state after one time.
at::Tensor advance(Cell cell, const Weights& w, const at::Tensor& h, at::Tensor* c, Moment* m) {
  m->h_before = h;
  const at::Tensor from_input = affine(m->x, w.w_ih, w.b_ih);
  const at::Tensor from_state = affine(h, w.w_hh, w.b_hh);
  if (cell == Cell::kLstm) {
    const auto gates = (from_input + from_state).chunk(4, 1);
    const at::Tensor i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(),
                     o = gates[3].sigmoid();
    m->c_before = *c;
    m->c = *c = f * *c + i * g;
    m->z = at::cat({i, f, g, o}, 1);
    m->raw = o * c->tanh();
    return w.w_hr.defined() ? at::mm(m->raw, w.w_hr.t()) : m->raw;
  }
  if (cell == Cell::kGru) {
    const auto in = from_input.chunk(3, 1);
    const auto state = from_state.chunk(3, 1);
    const at::Tensor r = (in[0] + state[0]).sigmoid(), u = (in[1] + state[1]).sigmoid();
    m->hidden = state[2];
    const at::Tensor n = (in[2] + r * state[2]).tanh();
    m->z = at::cat({r, u, n}, 1);
    return n + u * (h - n);
  }
  const at::Tensor sum = from_input + from_state;
  m->z = cell == Cell::kTanh ? sum.tanh() : sum.relu();
  return m->z;
}

/// From the gradients of the states after a time to those before it; `dc` of lstm only.
at::Tensor retreat(const Recurrence& call, const Weights& w, const at::Tensor& dh, at::Tensor* dc,
                   Moment* m) {
  const Cell cell = call.cell;
  m->d_state = dh;
  if (cell == Cell::kLstm) {
    const auto gates = m->z.chunk(4, 1);
    const at::Tensor &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3];
    const at::Tensor d_raw = w.w_hr.defined() ? at::mm(dh, w.w_hr) : dh;
    const at::Tensor t = m->c.tanh();
    const at::Tensor d_cell = call.h_is_made_of_c ? *dc : *dc + d_raw * o * (1 - t * t);
    m->d_input_gates = m->d_state_gates =
        at::cat({d_cell * g * i * (1 - i), d_cell * m->c_before * f * (1 - f),
                 d_cell * i * (1 - g * g), d_raw * t * o * (1 - o)},
                1);
    *dc = d_cell * f;
    return at::mm(m->d_state_gates, w.w_hh);
  }
  if (cell == Cell::kGru) {
    const auto gates = m->z.chunk(3, 1);
    const at::Tensor &r = gates[0], &u = gates[1], &n = gates[2];
    const at::Tensor dn = dh * (1 - u) * (1 - n * n);
    const at::Tensor dr = dn * m->hidden * r * (1 - r);
    const at::Tensor du = dh * (m->h_before - n) * u * (1 - u);
    m->d_input_gates = at::cat({dr, du, dn}, 1);
    m->d_state_gates = at::cat({dr, du, dn * r}, 1);
    return at::mm(m->d_state_gates, w.w_hh) + dh * u;
  }
  m->d_input_gates = m->d_state_gates =
      cell == Cell::kTanh ? dh * (1 - m->z * m->z) : dh * m->z.gt(0);
  return at::mm(m->d_state_gates, w.w_hh);
}

/// One direction of one layer over all times, in the order in which it visits them.
struct Pass {
  std::vector<Moment> moments;  // by time
  std::vector<at::Tensor> out;  // by time
};

at::Tensor first_rows(const at::Tensor& tensor, int64_t count) { return tensor.slice(0, 0, count); }

Pass forward(const Recurrence& call, const Weights& w, const std::vector<at::Tensor>& x,
             const at::Tensor& h0, const at::Tensor& c0, bool reverse) {
  const size_t length = x.size();
  Pass pass;
  pass.moments.resize(length);
  pass.out.resize(length);
  at::Tensor h, c;
  for (size_t k = 0; k < length; ++k) {
    const size_t t = reverse ? length - 1 - k : k;
    const int64_t rows = x[t].size(0);
    // Packed rows are sorted: some end with time, or begin where it runs backwards.
    const auto fit = [&](at::Tensor* state, const at::Tensor& begin) {
      if (!begin.defined()) return;
      if (!state->defined()) {
        *state = first_rows(begin, rows);
      } else if (state->size(0) > rows) {
        *state = first_rows(*state, rows);
      } else if (state->size(0) < rows) {
        *state = at::cat({*state, begin.slice(0, state->size(0), rows)});
      }
    };
    fit(&h, h0);
    fit(&c, c0);
    pass.moments[t].x = x[t];
    h = advance(call.cell, w, h, &c, &pass.moments[t]);
    pass.out[t] = h;
  }
  return pass;
}

/// `d_out`: of the outputs by time (undefined: none), `dh`, `dc`: of the states in the end. Returns
/// the gradients of the inputs by time.
std::vector<at::Tensor> backward(const Recurrence& call, const Weights& w,
                                 const std::vector<at::Tensor>& d_out, const at::Tensor& d_h,
                                 const at::Tensor& d_c, bool reverse, Pass* pass) {
  const size_t length = pass->moments.size();
  std::vector<at::Tensor> d_x(length);
  at::Tensor dh, dc;
  for (size_t k = 0; k < length; ++k) {
    const size_t t = reverse ? k : length - 1 - k;
    const int64_t rows = pass->moments[t].x.size(0);
    const auto fit = [&](at::Tensor* d, const at::Tensor& end) {
      if (!end.defined()) return;
      if (!d->defined()) {
        *d = first_rows(end, rows);
      } else if (d->size(0) > rows) {
        *d = first_rows(*d, rows);  // Began after this time: goes into the given state.
      } else if (d->size(0) < rows) {
        *d = at::cat({*d, end.slice(0, d->size(0), rows)});
      }
    };
    fit(&dh, d_h);
    fit(&dc, d_c);
    if (d_out[t].defined()) dh = dh + d_out[t];
    dh = retreat(call, w, dh, &dc, &pass->moments[t]);
    d_x[t] = at::mm(pass->moments[t].d_input_gates, w.w_ih);
  }
  return d_x;
}

size_t weights_of_each(const Recurrence& call) {
  return call.weights.size() / static_cast<size_t>(call.layers * call.directions);
}

Weights weights_of(const Recurrence& call, size_t which) {
  const size_t each = weights_of_each(call);
  const auto begin = call.weights.begin() + static_cast<std::ptrdiff_t>(which * each);
  const auto wide = [&](size_t i) { return widen(begin[static_cast<std::ptrdiff_t>(i)]); };
  Weights w;
  w.w_ih = wide(0);
  w.w_hh = wide(1);
  if (call.biases) {
    w.b_ih = wide(2);
    w.b_hh = wide(3);
  }
  if (each % 2 == 1) w.w_hr = wide(each - 1);
  return w;
}

}  // namespace

std::optional<size_t> Recurrence::weight_at(size_t position, const at::Tensor& argument) const {
  if (!in_list) {
    const size_t index = position - 2;
    return position >= 2 && index < weights.size() ? std::optional<size_t>(index) : std::nullopt;
  }
  std::optional<size_t> found;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!weights[i].is_same(argument)) continue;
    if (found) return std::nullopt;  // In two places: which is meant cannot be told.
    found = i;
  }
  return found;
}

std::optional<Recurrence> recurrence(const std::string& name,
                                     c10::ArrayRef<const c10::IValue> inputs,
                                     std::string* why_not) {
  static const auto* cells = new std::unordered_map<std::string, Cell>{
      {"aten::lstm", Cell::kLstm},     {"aten::lstm_cell", Cell::kLstm},
      {"aten::gru", Cell::kGru},       {"aten::gru_cell", Cell::kGru},
      {"aten::rnn_tanh", Cell::kTanh}, {"aten::rnn_tanh_cell", Cell::kTanh},
      {"aten::rnn_relu", Cell::kRelu}, {"aten::rnn_relu_cell", Cell::kRelu}};
  const auto found = cells->find(name);
  if (found == cells->end()) return std::nullopt;
  Recurrence call;
  call.cell = found->second;
  call.single = name.find("_cell") != std::string::npos;
  call.in_list = !call.single;
  const auto states = [&](const c10::IValue& value) {
    const auto list =
        value.isTensor() ? std::vector<at::Tensor>{value.toTensor()} : value.toTensorVector();
    if (!list.empty()) call.h = list[0];
    if (list.size() > 1) call.c = list[1];
  };
  call.input = inputs[0].toTensor();
  if (call.single) {
    states(inputs[1]);
    for (size_t i = 2; i < 6 && i < inputs.size(); ++i) {
      if (inputs[i].isTensor() && inputs[i].toTensor().defined()) {
        call.weights.push_back(inputs[i].toTensor());
      }
    }
    call.biases = call.weights.size() == 4;
    if (call.input.dim() != 2 || call.weights.size() % 2 != 0) {
      *why_not = name + " is called without a batch, or with one bias only";
    }
    return call;
  }
  const bool packed = inputs.size() > 4 && inputs[4].isBool();
  const size_t shift = packed ? 1 : 0;
  if (inputs.size() < 9) {
    *why_not = name + " is called in a way that is not known";
    return call;
  }
  if (packed) call.batch_sizes = inputs[1].toTensor().to(at::kCPU, at::kLong).contiguous();
  states(inputs[1 + shift]);
  call.weights = inputs[2 + shift].toTensorVector();
  call.biases = inputs[3 + shift].toBool();
  call.layers = inputs[4 + shift].toInt();
  const double dropout = inputs[5 + shift].toDouble();
  const bool train = inputs[6 + shift].toBool();
  call.directions = inputs[7 + shift].toBool() ? 2 : 1;
  call.batch_first = !packed && inputs[8].toBool();
  const auto each = static_cast<int64_t>(call.weights.size()) / (call.layers * call.directions);
  const int64_t least = call.biases ? 4 : 2;
  if (call.input.dim() != (packed ? 2 : 3) || each < least || each > least + 1 ||
      each * call.layers * call.directions != static_cast<int64_t>(call.weights.size())) {
    *why_not = name + " is called without a batch, or with weights that are not known";
  } else if (train && dropout > 0 && call.layers > 1) {
    *why_not = name + " draws dropout masks between its layers, which are not seen";
  }
  return call;
}

std::vector<Contribution> contributions(const Recurrence& call,
                                        const std::array<at::Tensor, 3>& output_gradients,
                                        const Batch& batch, const std::vector<Wanted>& wanted) {
  const auto fail = [&](const std::string& why) {
    return std::vector<Contribution>(call.weights.size(), failure(why));
  };
  const bool second = !call.single && !call.batch_sizes.defined() && !call.batch_first;
  if (!batch.rows || !batch.rows->has_rows() || batch.rows->dim != (second ? 1 : 0)) {
    return fail("the examples are not found in what it returns");
  }
  std::vector<at::Tensor> x = times(widen(call.input), call);
  // The example of each row of a time: the rows of every time are the first ones of an order.
  const at::Tensor labels = rows::labels(*batch.rows);
  int64_t most = 0;
  for (const at::Tensor& rows : x) most = std::max(most, rows.size(0));
  const at::Tensor order = first_rows(labels, most);
  if (call.batch_sizes.defined() && !rows::sequences_keep_order(labels, call.batch_sizes)) {
    return fail("it runs over rows of different examples");
  }
  const auto h0 = widen(call.h);
  const auto c0 = call.c.defined() ? widen(call.c) : at::Tensor();
  const bool lstm = call.cell == Cell::kLstm;
  const auto of_layer = [&](const at::Tensor& states, int64_t which) {
    if (!states.defined()) return at::Tensor();
    return call.single ? states : states.select(0, which);
  };
  std::vector<Pass> passes;
  for (int64_t layer = 0; layer < call.layers; ++layer) {
    std::vector<at::Tensor> next(x.size());
    for (int64_t direction = 0; direction < call.directions; ++direction) {
      const int64_t which = layer * call.directions + direction;
      passes.push_back(forward(call, weights_of(call, static_cast<size_t>(which)), x,
                               of_layer(h0, which), lstm ? of_layer(c0, which) : at::Tensor(),
                               direction == 1));
      for (size_t t = 0; t < x.size(); ++t) {
        const at::Tensor& out = passes.back().out[t];
        next[t] = next[t].defined() ? at::cat({next[t], out}, 1) : out;
      }
    }
    x = std::move(next);
  }
  std::vector<at::Tensor> d_out(x.size());
  if (output_gradients[0].defined() && !call.single) {
    d_out = times(widen(output_gradients[0]), call);
  }
  for (int64_t layer = call.layers - 1; layer >= 0; --layer) {
    std::vector<at::Tensor> d_x(x.size());
    for (int64_t direction = 0; direction < call.directions; ++direction) {
      const int64_t which = layer * call.directions + direction;
      Pass& pass = passes[static_cast<size_t>(which)];
      std::vector<at::Tensor> own = d_out;
      if (call.directions == 2) {
        for (at::Tensor& each : own) {
          if (each.defined()) each = each.chunk(2, 1)[static_cast<size_t>(direction)];
        }
      }
      const auto end = [&](const at::Tensor& given, const at::Tensor& like) {
        const at::Tensor d = given.defined() ? of_layer(widen(given), which) : at::Tensor();
        return d.defined() ? d : at::zeros({most, like.size(1)}, like.options());
      };
      const Weights w = weights_of(call, static_cast<size_t>(which));
      const std::vector<at::Tensor> from = backward(
          call, w, own, end(output_gradients[call.single ? 0 : 1], pass.out[0]),
          lstm ? end(output_gradients[call.single ? 1 : 2], pass.moments[0].c) : at::Tensor(),
          direction == 1, &pass);
      for (size_t t = 0; t < x.size(); ++t) d_x[t] = d_x[t].defined() ? d_x[t] + from[t] : from[t];
    }
    d_out = std::move(d_x);
  }
  std::vector<at::Tensor> parts;
  for (const Moment& moment : passes[0].moments) {
    parts.push_back(first_rows(order, moment.x.size(0)));
  }
  Batch all;
  all.size = batch.size;
  all.rows = rows::labelled(0, batch.size, at::cat(parts));
  std::vector<Contribution> result;
  for (size_t which = 0; which < passes.size(); ++which) {
    const auto join = [&](at::Tensor Moment::*field) {
      std::vector<at::Tensor> tensors;
      for (const Moment& moment : passes[which].moments) tensors.push_back(moment.*field);
      return at::cat(tensors);
    };
    const size_t each = weights_of_each(call);
    const at::Tensor d_input = join(&Moment::d_input_gates);
    const at::Tensor d_state = join(&Moment::d_state_gates);
    const auto ask = [&]() -> const Wanted& { return wanted[result.size()]; };
    result.push_back(linear(join(&Moment::x), d_input, false, all, ask()));
    result.push_back(linear(join(&Moment::h_before), d_state, false, all, ask()));
    if (call.biases) {
      for (const at::Tensor& d : {d_input, d_state}) {
        result.push_back(broadcast(call.weights[which * each + 2], {}, d, all, ask()));
      }
    }
    if (each % 2 == 1) {
      result.push_back(linear(join(&Moment::raw), join(&Moment::d_state), false, all, ask()));
    }
  }
  return result;
}

}  // namespace tycho::per_example
