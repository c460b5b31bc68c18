#pragma once

#include <string>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// Why a parameter's gradient is not known although there was one; empty: it is known, or there was
/// none.
inline const std::string& why_not_gradient(const ParameterObservation& seen) {
  static const std::string known;
  const bool there = seen.gradient.defined() || seen.gradient_norm_sq.defined();
  return there ? known : seen.why_not_per_example;
}

/// For messages: the root's path is empty.
inline std::string name_of(const LayerInfo& layer) {
  return layer.path.empty() ? "the model itself" : "layer " + layer.path;
}

/// Why a sum over the parameters of a layer or of the run is not one over all of them.
class LeftOut {
 public:
  void add(const std::string& parameter, const std::string& why) {
    if (!parameters_.empty() && parameters_.back() == parameter) return;
    parameters_.push_back(parameter);
    if (why_.empty()) why_ = why;
  }
  bool any() const { return !parameters_.empty(); }
  /// Says once that not all sums of `what` are recorded, which parameter is the first to prevent
  /// it, why, and how many more there are. `probe` makes the event's code.
  void say(const std::string& probe, const std::string& what, v1::Scope scope, uint32_t entity,
           Recorder& recorder) const {
    if (parameters_.empty()) return;
    std::string message = "Not all " + what + " are recorded, because " + parameters_.front() +
                          " cannot be counted: " + why_;
    if (parameters_.size() > 1) {
      message += " (and " + std::to_string(parameters_.size() - 1) + " more parameters)";
    }
    recorder.event(v1::Event::NOT_OBSERVED, probe + "_total_not_observed", message, scope, entity);
  }

 private:
  std::vector<std::string> parameters_;
  std::string why_;
};

}  // namespace tycho
