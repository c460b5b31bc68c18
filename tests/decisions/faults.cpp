#include "faults.h"

#include <cmath>
#include <filesystem>
#include <stdexcept>

#include "src/report/report.h"

namespace tycho::decisions {
namespace {

/// The setup with the decision carried out, as its text says.
RunSetup followed(RunSetup setup, const analyzer::Decision& decision) {
  const std::string& what = decision.setting;
  if (what == "learning_rate") {
    setup.learning_rate *= decision.factor;
  } else if (what == "batch_size") {
    setup.batch =
        std::max<int64_t>(std::llround(static_cast<double>(setup.batch) * decision.factor), 1);
  } else if (what == "weight_decay") {
    setup.weight_decay *= decision.factor;
  } else if (what == "epsilon") {
    setup.epsilon *= decision.factor;
  } else if (what == "gain") {
    setup.gain *= decision.factor;
  } else if (what == "input_scale") {
    setup.scaled_inputs = false;
  } else if (what == "zero_grad") {
    setup.keep_gradients = false;
  } else if (what == "frozen_layers") {
    setup.frozen = -1;
  } else if (what == "attached_layers") {
    setup.detached = -1;
  } else if (what == "silent_layers") {
    setup.dead = -1;
  } else if (what == "decay_from") {
    setup.decay_from = 0.8;
  } else if (what == "steps") {
    setup.steps =
        std::max<int64_t>(std::llround(static_cast<double>(setup.steps) * decision.factor), 1);
  } else if (what == "copies") {
    setup.copies = 1;
  } else if (what == "order") {
    setup.sorted = false;
  } else {
    throw std::logic_error("nothing here can follow a decision about \"" + what + "\"");
  }
  return setup;
}

}  // namespace

const std::vector<Fault>& faults() {
  static const std::vector<Fault> all = {
      {"learning rate 10 times too high", "mlp", [](RunSetup* s) { s->learning_rate *= 10; },
       "learning_rate_high"},
      {"learning rate 30 times too low", "mlp", [](RunSetup* s) { s->learning_rate /= 30; },
       "learning_rate_low"},
      {"learning rate 30 times too low", "mlp_adam", [](RunSetup* s) { s->learning_rate /= 30; },
       "learning_rate_low"},
      {"learning rate 30 times too low", "transformer", [](RunSetup* s) { s->learning_rate /= 30; },
       "learning_rate_low"},
      {"learning rate 60 times too high", "transformer",
       [](RunSetup* s) { s->learning_rate *= 60; }, "learning_rate_high"},
      {"batches of one example", "mlp", [](RunSetup* s) { s->batch = 1; }, "single_examples"},
      {"first weights 30 times too large", "mlp", [](RunSetup* s) { s->gain = 30; }, "large_start"},
      {"first weights 5 times too large", "mlp", [](RunSetup* s) { s->gain = 5; }, "large_start"},
      {"inputs 100 times too large", "mlp", [](RunSetup* s) { s->scaled_inputs = true; },
       "large_inputs"},
      {"a layer that the optimizer does not hold", "mlp", [](RunSetup* s) { s->frozen = 1; },
       "not_in_optimizer"},
      {"a layer that the optimizer does not hold", "cnn", [](RunSetup* s) { s->frozen = 3; },
       "not_in_optimizer"},
      {"a detached branch", "mlp", [](RunSetup* s) { s->detached = 1; }, "no_gradient"},
      {"a detached branch", "transformer", [](RunSetup* s) { s->detached = 1; }, "no_gradient"},
      {"a layer that is silent from the start", "mlp", [](RunSetup* s) { s->dead = 1; },
       "silent_layer"},
      {"weight decay of 0.05", "mlp", [](RunSetup* s) { s->weight_decay = 0.05; }, "weight_decay"},
      {"weight decay 100 times too large", "mlp_adam", [](RunSetup* s) { s->weight_decay *= 100; },
       "weight_decay"},
      {"learning rate lowered after a tenth of the run", "mlp",
       [](RunSetup* s) { s->decay_from = 0.1; }, "early_decay"},
      {"Adam's epsilon 1e-2", "mlp_adam", [](RunSetup* s) { s->epsilon = 1e-2; }, "adam_epsilon"},
      {"Adam's epsilon 1e-2", "cnn", [](RunSetup* s) { s->epsilon = 1e-2; }, "adam_epsilon"},
      {"zero_grad() is missing", "mlp", [](RunSetup* s) { s->keep_gradients = true; },
       "gradients_kept"},
      {"each example four times in its batch", "mlp", [](RunSetup* s) { s->copies = 4; },
       "copied_examples"},
  };
  return all;
}

bool Verdict::names(const std::string& code) const {
  return !decisions.empty() && decisions.front().code == code;
}

bool Verdict::improves() const { return loss_followed <= 0.95 * loss; }

Verdict decide(const RunSetup& setup, const std::string& directory) {
  std::filesystem::remove_all(directory);
  Verdict verdict;
  verdict.loss = train(setup, directory).held_out_loss;
  const auto report = analyzer::read_report(directory, nullptr);
  std::filesystem::remove_all(directory);
  if (!report.ok()) throw std::runtime_error(report.status().message());
  verdict.decisions = report.value().decisions;
  verdict.loss_followed = std::nan("");
  if (!verdict.decisions.empty())
    verdict.loss_followed = train(followed(setup, verdict.decisions.front()), "").held_out_loss;
  return verdict;
}

}  // namespace tycho::decisions
