#include "laws/availability.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "laws/law_support.h"

namespace tycho::analyzer {
namespace {

enum class Loss { kNone, kProbe, kFeatures, kLabels, kExamples, kBatch };

/// Which loss of the user a statistic is taken from.
Loss loss_of(std::string_view statistic) {
  struct Row {
    Loss loss;
    std::vector<std::string_view> statistics;
  };
  static const std::vector<Row> rows = {
      {Loss::kProbe,
       {"probe_loss", "sharpness", "preconditioned_sharpness", "stability_threshold",
        "hessian_eigenvalue", "hessian_trace", "block_sharpness", "directional_sharpness",
        "critical_sharpness", "loss_change", "loss_change_first_order", "loss_change_second_order",
        "modified_flow_excess", "central_flow_variance"}},
      {Loss::kFeatures,
       {"kernel_distance", "linearization_residual", "feature_change", "feature_change_relative",
        "fact_residual", "feature_ansatz_alignment", "mode_strength", "target_mode_strength"}},
      {Loss::kLabels, {"class_variability", "probe_error"}},
      {Loss::kExamples, {"gauss_newton_trace", "predicted_noise_trace"}},
      {Loss::kBatch, {"batch_sharpness"}},
  };
  for (const Row& row : rows) {
    if (std::find(row.statistics.begin(), row.statistics.end(), statistic) != row.statistics.end())
      return row.loss;
  }
  return Loss::kNone;
}

const char* words_of(Loss loss) {
  switch (loss) {
    case Loss::kNone:
      break;
    case Loss::kProbe:
      return "a probe loss (Session::set_probe_loss)";
    case Loss::kFeatures:
      return "a probe loss with `output` (Session::set_probe_loss with a ProbeLoss)";
    case Loss::kLabels:
      return "a probe loss with `output` and `labels` (Session::set_probe_loss with a ProbeLoss)";
    case Loss::kExamples:
      return "a probe loss with `output` and `examples` (Session::set_probe_loss with a ProbeLoss)";
    case Loss::kBatch:
      return "a loss on fresh batches (Session::set_batch_loss)";
  }
  return "";
}

const v1::StatisticDefinition* definition_of(const RunContext& context, const std::string& name) {
  for (const v1::StatisticDefinition& definition : context.registry().statistic()) {
    if (definition.name() == name) return &definition;
  }
  return nullptr;
}

const v1::Event* event_of(const RunContext& context, std::string_view code) {
  for (const v1::Event& event : context.events()) {
    if (event.code() == code) return &event;
  }
  return nullptr;
}

/// What the session said about it; nullptr: nothing.
const v1::Event* said_about(const RunContext& context, const v1::StatisticDefinition& definition) {
  const std::array<std::string, 8> codes = {definition.name() + "_not_observed",
                                            definition.probe() + "_not_observed",
                                            definition.probe() + "_total_not_observed",
                                            "gradient_" + definition.probe() + "_not_observed",
                                            "loss_missing_" + definition.probe(),
                                            "probe_disabled_" + definition.probe(),
                                            "probe_fault_" + definition.probe(),
                                            definition.name() + "_not_finite"};
  for (const std::string& code : codes) {
    const v1::Event* found = nullptr;
    for (const v1::Event& event : context.events()) {
      if (event.code() != code) continue;
      if (event.scope() == v1::SCOPE_RUN) return &event;
      if (found == nullptr) found = &event;
    }
    if (found != nullptr) return found;
  }
  if (definition.probe() != "noise") return nullptr;
  return event_of(context, "noise_needs_two_examples");
}

std::string without_full_stop(std::string text) {
  while (!text.empty() && (text.back() == '.' || text.back() == ' ')) text.pop_back();
  return text;
}

/// Why, in words, and the statistic that waited for the budget.
struct Reason {
  std::string text;
  std::string deferred;
};

Reason reason_of(const RunContext& context, const std::vector<std::string>& any_of) {
  const std::string& wanted = any_of.front();
  const v1::StatisticDefinition* definition = nullptr;
  for (const std::string& name : any_of) {
    if (definition == nullptr) definition = definition_of(context, name);
  }
  const Loss loss = loss_of(definition != nullptr ? definition->name() : wanted);
  const bool has_probe_loss = context.recorded("probe_loss");
  if (loss != Loss::kNone) {
    const v1::Event* failed =
        event_of(context, loss == Loss::kBatch ? "batch_loss_failed" : "probe_loss_failed");
    if (failed == nullptr && loss != Loss::kBatch)
      failed = event_of(context, "probe_loss_not_replayed");
    if (failed != nullptr) return {without_full_stop(failed->message()), ""};
  }
  if (definition == nullptr) {
    std::string text =
        fmt::format("this session does not record {}; SessionOptions::every(\"{}\", 50) adds it",
                    wanted, wanted);
    if (loss != Loss::kNone && (loss == Loss::kBatch || !has_probe_loss))
      text += fmt::format(", together with {}", words_of(loss));
    return {text, ""};
  }
  if (const v1::Event* event = said_about(context, *definition); event != nullptr)
    return {without_full_stop(event->message()), ""};
  if (loss != Loss::kNone && loss != Loss::kBatch && !has_probe_loss) {
    std::string text = fmt::format("{} needs {}", definition->name(), words_of(loss));
    if (const v1::Event* refused = event_of(context, "tape_refused"); refused != nullptr) {
      const std::string& message = refused->message();
      text += ": " + message.substr(0, message.find(". "));
    }
    return {text, ""};
  }
  if (context.recorded(definition->name()))
    return {fmt::format("{} was recorded, but not for the scopes that the law needs",
                        definition->name()),
            ""};
  const auto& options = context.run().options();
  const auto budget = options.find("overhead_budget");
  const bool limited = budget != options.end() && budget->second != "none";
  std::string text =
      limited ? fmt::format(
                    "{} was not due within the overhead budget of {}: raise the budget, or "
                    "request the statistic with SessionOptions::every(\"{}\", 50)",
                    definition->name(), budget->second, definition->name())
              : fmt::format("{} was not recorded at any observed step", definition->name());
  const bool taped = event_of(context, "probe_loss_from_tape") != nullptr;
  if (!taped && (loss == Loss::kBatch || loss == Loss::kFeatures || loss == Loss::kLabels ||
                 loss == Loss::kExamples))
    text += fmt::format("; it needs {}", words_of(loss));
  return {text, limited ? definition->name() : std::string()};
}

}  // namespace

std::string why_not_recorded(const RunContext& context, const std::vector<std::string>& any_of) {
  return reason_of(context, any_of).text;
}

void set_not_measured(Finding& finding, const RunContext& context, const std::string& what,
                      const std::vector<std::string>& any_of) {
  set_verdict(finding, Verdict::kNotMeasured);
  const Reason reason = reason_of(context, any_of);
  finding.gate = fmt::format("{} not measured: {}", what, reason.text);
  finding.deferred = reason.deferred;
}

void set_no_settings(Finding& finding) {
  set_verdict(finding, Verdict::kNotMeasured);
  finding.gate =
      "the optimizer's settings are not known: pass Session the optimizer that holds the "
      "parameters";
}

}  // namespace tycho::analyzer
