#include "layer_outputs.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <utility>

#include "layer_operators.h"

namespace tycho {

namespace operators = layer_operators;

void sum_outputs(const LayerOutputs& layer, const LayerInfo& info, bool wants_gradients,
                 double loss_scale, LayerObservation* observed,
                 std::vector<ActivationNotObserved>* lost) {
  const bool library = operators::is_library(info.type);
  const auto not_observed = [&](std::string why, const char* what = "activations") {
    lost->push_back({info.id, what, std::move(why)});
  };
  std::vector<std::shared_ptr<LayerOutput>> counted;
  bool any = false;
  std::map<uint64_t, std::string> calls;
  for (const std::shared_ptr<LayerOutput>& output : layer.outputs) {
    if (output->counted == 0) continue;
    any = true;
    if (!library) calls[output->call] = layer.calls[output->call].signature;
    if (!output->why_not.empty()) return not_observed(output->why_not);
    if (output->inner) continue;
    const bool product_of_many = !library && layer.calls[output->call].products > 1;
    const auto scaled = output->scaled.lock();
    if (scaled && product_of_many && scaled->counted != 0) {
      if (!output->used_as_is) continue;  // The scaled one is the output.
    } else if (!output->parents.empty() && output->parents.size() == 1 && !product_of_many) {
      continue;  // Told of below, at what is scaled.
    }
    if (!output->arithmetic.empty() && !output->used_as_is) {
      return not_observed(
          fmt::format("{} directly follows {}, and may lie inside or outside the module; let a "
                      "LibTorch module (Linear, Conv2d) hold the weight",
                      output->arithmetic, output->made_by));
    }
    counted.push_back(output);
  }
  if (!any) {
    const std::string no_output = operators::why_no_output(info.type);
    if (!layer.delivered.empty()) {
      return not_observed(!no_output.empty()       ? no_output
                          : !layer.why_not.empty() ? layer.why_not
                          : layer.outputs.empty()  ? "no operator was seen to make its output"
                                                  : "its result took no part in the backward pass");
    }
    if (!layer.outputs.empty()) {
      return not_observed("no backward pass brought gradients to its parameters");
    }
    if (layer.frozen) not_observed("its parameters do not train");
    return;
  }
  if (!library) {
    std::set<uint64_t> seen;
    std::set<std::string> kinds;
    for (const auto& [number, signature] : calls) kinds.insert(signature);
    for (const std::shared_ptr<LayerOutput>& output : counted) {
      if (!seen.insert(output->call).second) {
        return not_observed(
            "several results leave one call of it, and it is unclear which is its output");
      }
    }
    if (kinds.size() > 1 || seen.size() != calls.size()) {
      return not_observed("its calls differ in the operators that use its parameters");
    }
  }
  bool gradients = wants_gradients;
  bool units = true;
  for (const std::shared_ptr<LayerOutput>& output : counted) {
    const auto add = [](at::Tensor* sum, const at::Tensor& term) {
      if (term.defined()) *sum = sum->defined() ? *sum + term : term;
    };
    add(&observed->output_sum, output->sum);
    add(&observed->output_square_sum, output->square_sum);
    observed->output_elements += output->elements;
    gradients = gradients && !output->several_passes;
    add(&observed->output_gradient_square_sum, output->gradient_square_sum);
    observed->output_gradient_elements += output->gradient_elements;
    units = units && !output->units_unknown;
    if (!output->largest.defined()) continue;
    at::Tensor& largest = observed->relu_input_max;
    if (largest.defined() && largest.sizes() != output->largest.sizes()) units = false;
    if (!units) continue;
    largest = largest.defined() ? at::maximum(largest, output->largest) : output->largest;
  }
  if (!gradients) {
    observed->output_gradient_square_sum = at::Tensor();
    observed->output_gradient_elements = 0;
    if (wants_gradients) {
      not_observed("the gradient at its output came back in several backward passes",
                   "activation_grad_rms");
    }
  } else if (loss_scale != 1.0 && observed->output_gradient_square_sum.defined()) {
    observed->output_gradient_square_sum =
        observed->output_gradient_square_sum / (loss_scale * loss_scale);
  }
  if (!units) {
    observed->relu_input_max = at::Tensor();
    not_observed(
        fmt::format("the dimension of its units is not known after {}", counted.front()->made_by),
        "dead_fraction");
  }
}

}  // namespace tycho
