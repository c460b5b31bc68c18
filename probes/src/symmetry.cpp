#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "built_in.h"
#include "channel_sums.h"

namespace tycho {
namespace {

at::Tensor rows_of(const at::Tensor& tensor, const SymmetryMember& member) {
  const at::Tensor rows = tensor.detach();
  return rows.dim() > 0 ? rows.narrow(0, member.begin, member.count) : rows;
}

/// Rows of a member as [channels, everything else] in float64.
at::Tensor unfold(const at::Tensor& tensor, const SymmetryMember& member) {
  const at::Tensor rows = rows_of(tensor, member).to(at::kDouble).reshape(member.view);
  std::vector<int64_t> order = member.axes;
  int64_t channels = 1;
  for (const int64_t axis : member.axes) channels *= member.view[static_cast<size_t>(axis)];
  for (int64_t axis = 0; axis < rows.dim(); ++axis) {
    if (std::find(member.axes.begin(), member.axes.end(), axis) == member.axes.end())
      order.push_back(axis);
  }
  return rows.permute(order).reshape({channels, -1});
}

/// Symmetries of the architecture (theory T1.2; Kunin et al. 2021), per group of parameters that
/// can be transformed together, in float64. With members (p, k) that scale with channel i of the
/// group (sign +1) or inversely (-1), the gradient G obeys
///   sum_+ G_i W_i^T - sum_- W_i G_i^T = E_i,
/// as a matrix over the channels of a block that may be mixed, else channel by channel; E is what
/// the epsilons of normalisations leave, measured in the same backward pass. For a translation, the
/// gradient sums to zero over the channels of each member. Both hold for every batch and any
/// optimizer.
///
/// symmetry_residual = |left - right| / sum over members of sqrt(sum_i |W_i|^2 |G_i|^2): relative
/// to the largest the terms can be, so that it is small for rounding, also where both sides nearly
/// vanish.
///
/// conservation_error: for SGD without momentum with w' = f w - eta g, f = 1 - eta lambda, the sum
/// Q = sum_+ W W^T - sum_- W^T W obeys Q' = f^2 Q + eta^2 (same of G) - f eta (E + E^T): the norm
/// of the difference relative to the norms of the terms that change Q. The standard error is what
/// rounding weights to their format explains.
///
/// Both at parameters: of the groups that a parameter is in, the one with the largest value. A
/// group is left out where a gradient is missing or zero, or where its weights did not get the same
/// settings. Costs a few passes over weights and gradients, and for blocks of n channels n
/// multiplications an element.
class SymmetryProbe : public Probe {
 public:
  std::string name() const override { return "symmetry"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_PARAMETER};
    return {
        define_statistic("symmetry_residual", "r", "1", scopes,
                         "|sum_+ G W^T - sum_- W G^T - E| / sum |W||G| by channel, for the "
                         "parameter's symmetry group with the largest value.",
                         "Kunin et al. 2021, arXiv:2012.04728; theory T1.2"),
        define_statistic(
            "conservation_error", "r_Q", "1", scopes,
            "Relative error of Q' = f^2 Q + eta^2 Q(G) - f eta (E + E^T) under SGD, for the "
            "parameter's symmetry group with the largest value; its standard error is that of "
            "rounding.",
            "Kunin et al. 2021, arXiv:2012.04728; theory T1.2"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.gradients = true;
    needs.previous_weights = true;
    needs.symmetries = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    struct Sent {
      std::vector<uint32_t> parameters;
      size_t residual;                // difference, scale
      std::optional<size_t> balance;  // difference, scale, rounding
    };
    std::vector<Sent> sent;
    for (const SymmetryGroup& group : *step.symmetries) {
      if (!observed(step, group)) continue;
      Sent entry;
      for (const SymmetryMember& member : group.members)
        entry.parameters.push_back(member.parameter);
      entry.residual = transfer.send(gradient_identity(step, group));
      if (const auto settings = common_settings(step, group)) {
        entry.balance = transfer.send(balance(step, group, *settings));
      }
      sent.push_back(std::move(entry));
    }
    return [this, sent = std::move(sent)](const Arrived& arrived, Recorder& recorder) {
      constexpr double kNone = -1;
      std::vector<double> residuals(model_.parameters.size(), kNone);
      std::vector<double> errors(model_.parameters.size(), kNone);
      std::vector<double> roundings(model_.parameters.size(), 0);
      for (const Sent& entry : sent) {
        const double* identity = arrived.data(entry.residual);
        const double residual = identity[0] / identity[1];
        for (const uint32_t id : entry.parameters) {
          if (identity[1] > 0) residuals[id] = std::max(residuals[id], residual);
        }
        if (!entry.balance) continue;
        const double* change = arrived.data(*entry.balance);
        if (!(change[1] > 0)) continue;
        for (const uint32_t id : entry.parameters) {
          const double error = change[0] / change[1];
          const double rounding = change[2] / change[1];
          if (errors[id] >= 0 && error - 4 * rounding <= errors[id] - 4 * roundings[id]) continue;
          errors[id] = error;
          roundings[id] = rounding;
        }
      }
      for (uint32_t id = 0; id < residuals.size(); ++id) {
        if (residuals[id] >= 0) {
          recorder.parameter("symmetry_residual", id, residuals[id], Recorder::kUnknown);
        }
        if (errors[id] >= 0) {
          recorder.parameter("conservation_error", id, errors[id], roundings[id]);
        }
      }
    };
  }

 private:
  struct Settings {
    double learning_rate;
    double weight_decay;
  };

  const at::Tensor& weight(const StepView& step, const SymmetryMember& member) const {
    return (*step.parameters)[member.parameter].previous_weight;
  }

  bool observed(const StepView& step, const SymmetryGroup& group) const {
    const auto device = model_.parameters[group.members[0].parameter].tensor.device();
    for (const SymmetryMember& member : group.members) {
      const ParameterObservation& seen = (*step.parameters)[member.parameter];
      if (!seen.gradient.defined() || !seen.previous_weight.defined()) return false;
      if (seen.gradient.device() != device) return false;
    }
    return true;
  }

  /// Of plain SGD, where all members have the same.
  std::optional<Settings> common_settings(const StepView& step, const SymmetryGroup& group) const {
    if (step.optimizer == nullptr || step.optimizer->optimizer() != "SGD") return std::nullopt;
    std::optional<Settings> common;
    for (const SymmetryMember& member : group.members) {
      std::optional<Settings> own;
      for (const v1::ParameterGroup& settings : step.optimizer->group()) {
        const auto& ids = settings.parameter();
        if (std::find(ids.begin(), ids.end(), member.parameter) == ids.end()) continue;
        if (settings.momentum() != 0) return std::nullopt;
        own = Settings{settings.learning_rate(), settings.weight_decay()};
      }
      if (!own || !(*step.parameters)[member.parameter].update_known) return std::nullopt;
      if (common && (common->learning_rate != own->learning_rate ||
                     common->weight_decay != own->weight_decay)) {
        return std::nullopt;
      }
      common = own;
    }
    return common;
  }

  /// Products of channels within blocks: [channels], or [blocks, block, block]; summed where only
  /// all channels together are scaled.
  static at::Tensor products(const SymmetryGroup& group, const at::Tensor& left,
                             const at::Tensor& right) {
    if (group.block > 1) {
      const auto blocks = [&](const at::Tensor& t) {
        return t.reshape({group.channels / group.block, group.block, -1});
      };
      return at::bmm(blocks(left), blocks(right).transpose(1, 2));
    }
    return diagonal(group, (left * right).sum(1));
  }

  static at::Tensor diagonal(const SymmetryGroup& group, const at::Tensor& by_channel) {
    return group.uniform ? by_channel.sum().unsqueeze(0) : by_channel;
  }

  static at::Tensor scale(const at::Tensor& w, const at::Tensor& g) {
    return (w.square().sum(1) * g.square().sum(1)).sum().sqrt();
  }

  at::Tensor epsilon_term(const SymmetryGroup& group) const {
    if (!group.epsilon_term.defined()) return {};
    return group.uniform ? group.epsilon_term.reshape({1}) : group.epsilon_term;
  }

  at::Tensor gradient_identity(const StepView& step, const SymmetryGroup& group) const {
    const bool translation = group.kind == "translation";
    at::Tensor difference;
    at::Tensor total;
    at::Tensor square;
    for (const SymmetryMember& member : group.members) {
      const at::Tensor& gradient = (*step.parameters)[member.parameter].gradient;
      at::Tensor part;
      at::Tensor size;
      if (!translation && group.block == 1) {
        if (const auto sums = channel_sums(weight(step, member), gradient, member)) {
          part = diagonal(group, sums->wg) * member.sign;
          difference = difference.defined() ? difference + part : part;
          size = (sums->ww * sums->gg).sum().sqrt();
          total = total.defined() ? total + size : size;
          continue;
        }
      }
      const at::Tensor w = unfold(weight(step, member), member);
      const at::Tensor g = unfold(gradient, member);
      if (translation) {
        const at::Tensor sums = g.sum(0).square().sum();
        square = square.defined() ? square + sums : sums;
        size = g.norm() * std::sqrt(static_cast<double>(group.channels));
      } else {
        part = member.sign > 0 ? products(group, g, w) : -products(group, w, g);
        difference = difference.defined() ? difference + part : part;
        size = scale(w, g);
      }
      total = total.defined() ? total + size : size;
    }
    if (translation) return at::stack({square.sqrt(), total});
    const at::Tensor epsilon = epsilon_term(group);
    if (epsilon.defined()) {
      // A normalisation allows no mixing: blocks are single channels.
      difference = difference - epsilon;
    }
    return at::stack({difference.norm(), total});
  }

  at::Tensor balance(const StepView& step, const SymmetryGroup& group,
                     const Settings& settings) const {
    const double eta = settings.learning_rate;
    const double decay = 1 - eta * settings.weight_decay;
    const bool translation = group.kind == "translation";
    at::Tensor difference;
    at::Tensor squares;
    at::Tensor change;
    at::Tensor rounding;
    for (const SymmetryMember& member : group.members) {
      const ParameterInfo& parameter = model_.parameters[member.parameter];
      const at::Tensor& weights = weight(step, member);
      const at::Tensor& gradient = (*step.parameters)[member.parameter].gradient;
      // Rounding to nearest errs by less than a third of the distance of neighbours, root mean
      // square.
      const double unit = 0.3 * epsilon_of(parameter.tensor.scalar_type());
      at::Tensor part;
      at::Tensor size;
      at::Tensor error;
      if (!translation && group.block == 1) {
        const at::Tensor now = parameter.tensor.detach();
        const auto used = channel_sums(weights, gradient, member);
        const auto updated = channel_sums(now, now, member);
        if (used && updated) {
          const at::Tensor gained = eta * eta * diagonal(group, used->gg);
          const at::Tensor kept = diagonal(group, used->ww);
          part = (diagonal(group, updated->ww) - decay * decay * kept - gained) * member.sign;
          difference = difference.defined() ? difference + part : part;
          size = gained.norm() + std::fabs(1 - decay * decay) * kept.norm();
          error = 4 * unit * unit * rows_of(weights, member).square().square().sum(at::kDouble);
          change = change.defined() ? change + size : size;
          rounding = rounding.defined() ? rounding + error : error;
          continue;
        }
      }
      const at::Tensor before = unfold(weights, member);
      const at::Tensor after = unfold(parameter.tensor, member);
      const at::Tensor g = unfold(gradient, member);
      if (translation) {
        part = (after.sum(0) - decay * before.sum(0)).square().sum();
        squares = squares.defined() ? squares + part : part;
        size = eta * std::sqrt(static_cast<double>(group.channels)) * g.norm() +
               std::fabs(1 - decay) * before.sum(0).norm();
        error = unit * unit * before.square().sum();
      } else {
        const at::Tensor gained = eta * eta * products(group, g, g);
        const at::Tensor kept = products(group, before, before);
        part = (products(group, after, after) - decay * decay * kept - gained) * member.sign;
        difference = difference.defined() ? difference + part : part;
        size = gained.norm() + std::fabs(1 - decay * decay) * kept.norm();
        const at::Tensor squared = before.square();
        error = 4 * unit * unit * products(group, squared, squared).sum();
      }
      change = change.defined() ? change + size : size;
      rounding = rounding.defined() ? rounding + error : error;
    }
    if (translation) return at::stack({squares.sqrt(), change, rounding.sqrt()});
    const at::Tensor epsilon = epsilon_term(group);
    if (epsilon.defined()) difference = difference + 2 * decay * eta * epsilon;
    return at::stack({difference.norm(), change, rounding.sqrt()});
  }

  static double epsilon_of(at::ScalarType type) {
    switch (type) {
      case at::kDouble:
        return std::numeric_limits<double>::epsilon();
      case at::kHalf:
        return std::ldexp(1.0, -10);
      case at::kBFloat16:
        return std::ldexp(1.0, -7);
      default:
        return std::numeric_limits<float>::epsilon();
    }
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_symmetry_probe() { return std::make_unique<SymmetryProbe>(); }

}  // namespace tycho
