#pragma once

#include <optional>
#include <vector>

#include "decisions/decision.h"
#include "decisions/signs.h"

namespace tycho::analyzer {

/// The decisions for a run, at most five, the one with the largest gain first. Of those that
/// concern the same setting the first stays. Empty where nothing that was measured asks for one.
/// Reads everything of the report but its decisions; costs a pass over its series.
std::vector<Decision> decide(const Report& report);

// One rule per file, which says what it looks at and with which thresholds. Each is asked only
// where Signs::enough().
std::optional<Decision> no_gradient(const Signs& signs);
std::optional<Decision> not_in_optimizer(const Signs& signs);
std::optional<Decision> silent_layer(const Signs& signs);
std::optional<Decision> gradients_kept(const Signs& signs);
std::optional<Decision> large_inputs(const Signs& signs);
std::optional<Decision> large_start(const Signs& signs);
std::optional<Decision> single_examples(const Signs& signs);
std::optional<Decision> copied_examples(const Signs& signs);
std::optional<Decision> coupled_examples(const Signs& signs);
std::optional<Decision> weight_decay(const Signs& signs);
std::optional<Decision> learning_rate_high(const Signs& signs);
std::optional<Decision> learning_rate_low(const Signs& signs);
std::optional<Decision> adam_epsilon(const Signs& signs);
std::optional<Decision> early_decay(const Signs& signs);
std::optional<Decision> overfitting(const Signs& signs);
std::optional<Decision> batch_size(const Signs& signs);

}  // namespace tycho::analyzer
