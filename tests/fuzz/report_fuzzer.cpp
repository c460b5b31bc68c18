// Whatever an intact trace says - ids that nobody defined, steps in any order, numbers of any size
// - its report is written without a crash. The bytes are read as instructions for a trace.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "analyzer/src/report/report.h"
#include "src/compare/comparison.h"
#include "tycho/analyzer/law.h"
#include "tycho/trace/run_writer.h"

namespace {

namespace v1 = tycho::v1;

class Instructions {
 public:
  Instructions(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  bool done() const { return data_ == end_; }
  uint32_t below(uint32_t n) { return byte() % n; }
  uint64_t word() {
    uint64_t value = 0;
    const size_t size = std::min<size_t>(sizeof(value), static_cast<size_t>(end_ - data_));
    std::memcpy(&value, data_, size);
    data_ += size;
    return value;
  }
  /// Often small, sometimes at the end of its range.
  int64_t step() {
    switch (below(8)) {
      case 0:
        return static_cast<int64_t>(word());
      case 1:
        return std::numeric_limits<int64_t>::max() - below(3);
      case 2:
        return step_ -= below(5);
      default:
        return step_ += below(5);
    }
  }
  double number() {
    const uint32_t choice = below(12);
    if (choice == 0) return std::numeric_limits<double>::quiet_NaN();
    if (choice == 1) return std::numeric_limits<double>::infinity();
    if (choice == 2) return std::numeric_limits<double>::max();
    if (choice == 3) return std::numeric_limits<double>::denorm_min();
    if (choice == 4) return 0;
    if (choice < 8) {
      const uint64_t bits = word();
      double value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
    return (byte() - 64.0) / 16;
  }
  /// Mostly one of few.
  uint32_t id(uint32_t known) {
    return below(16) == 0 ? static_cast<uint32_t>(word()) : below(known + 1);
  }
  v1::Scope scope() { return static_cast<v1::Scope>(below(6)); }
  std::string text() {
    static const char* const kTexts[] = {
        "",
        "0.weight",
        "</script><script>alert(1)</script>",
        "\"quoted\"\n",
        "\xe2\x86\x92",
        "sgd*",
        "Adam",
        "translation",
    };
    return kTexts[below(8)];
  }

 private:
  uint8_t byte() { return done() ? 0 : *data_++; }

  const uint8_t* data_;
  const uint8_t* end_;
  int64_t step_ = 0;
};

/// What the laws read, and one that none knows.
const std::vector<std::string>& statistics() {
  static const std::vector<std::string> names = [] {
    std::set<std::string> all = {"of_ones_own"};
    for (const auto& law : tycho::analyzer::make_laws()) {
      const std::vector<std::string>& read = law->description().statistics;
      all.insert(read.begin(), read.end());
    }
    return std::vector<std::string>(all.begin(), all.end());
  }();
  return names;
}

uint32_t statistic_count() { return static_cast<uint32_t>(statistics().size()); }

v1::ModelDescription model_of(Instructions* from) {
  v1::ModelDescription model;
  const uint32_t layers = from->below(4);
  for (uint32_t i = 0; i < layers; ++i) {
    v1::Layer* layer = model.add_layer();
    layer->set_id(from->below(8) == 0 ? from->id(4) : i);
    layer->set_path(from->text());
    layer->set_type(from->text());
    const uint32_t parameters = from->below(3);
    for (uint32_t k = 0; k < parameters; ++k) {
      v1::Parameter* parameter = model.add_parameter();
      parameter->set_id(from->below(8) == 0 ? from->id(4)
                                            : static_cast<uint32_t>(model.parameter_size() - 1));
      parameter->set_name(from->text());
      parameter->set_layer(from->below(8) == 0 ? from->id(4) : i);
      parameter->set_role(from->below(2) == 0 ? "weight" : "bias");
      parameter->set_element_count(from->below(4) == 0 ? from->word() : from->below(200));
      parameter->add_shape(from->below(4) == 0 ? static_cast<int64_t>(from->word())
                                               : from->below(20));
      layer->add_parameter(from->id(4));
    }
  }
  return model;
}

v1::StatisticRegistry registry_of(Instructions* from) {
  v1::StatisticRegistry registry;
  uint32_t id = 0;
  for (const std::string& name : statistics()) {
    v1::StatisticDefinition* definition = registry.add_statistic();
    ++id;
    definition->set_id(from->below(16) == 0 ? from->id(statistic_count()) : id);
    definition->set_name(name);
    definition->set_symbol(from->text());
    definition->set_unit(from->text());
    definition->add_scope(from->scope());
  }
  return registry;
}

v1::Record record_of(Instructions* from) {
  v1::Record record;
  record.set_step(from->step());
  const uint32_t columns = from->below(5);
  for (uint32_t c = 0; c < columns; ++c) {
    v1::Column* column = record.add_column();
    column->set_statistic(from->id(statistic_count()));
    column->set_scope(from->scope());
    const uint32_t values = from->below(5);
    for (uint32_t i = 0; i < values; ++i) {
      column->add_value(from->number());
      if (from->below(8) > 0) column->add_entity(from->below(8) == 0 ? from->id(6) : i);
      if (from->below(2) == 0) column->add_standard_error(from->number());
    }
  }
  return record;
}

v1::OptimizerSettings settings_of(Instructions* from) {
  v1::OptimizerSettings settings;
  settings.set_step(from->step());
  settings.set_optimizer(from->below(2) == 0 ? "AdamW" : "SGD");
  const uint32_t groups = from->below(3);
  for (uint32_t g = 0; g < groups; ++g) {
    v1::ParameterGroup* group = settings.add_group();
    group->set_learning_rate(from->number());
    group->set_momentum(from->number());
    group->set_weight_decay(from->number());
    group->set_beta1(from->number());
    group->set_beta2(from->number());
    group->set_epsilon(from->number());
    for (uint32_t i = from->below(4); i > 0; --i) group->add_parameter(from->id(6));
  }
  return settings;
}

v1::ModelStructure structure_of(Instructions* from) {
  v1::ModelStructure structure;
  for (uint32_t i = from->below(3); i > 0; --i) {
    v1::SymmetryGroup* group = structure.add_symmetry_group();
    group->set_id(from->id(3));
    group->set_kind(from->text());
    group->set_label(from->text());
    group->add_parameter(from->id(6));
    v1::LayerEdge* edge = structure.add_edge();
    edge->set_from(from->id(3));
    edge->set_to(from->id(3));
    v1::LayerFact* fact = structure.add_fact();
    fact->set_layer(from->id(3));
    fact->set_fan_in(from->below(2) == 0 ? from->word() : from->below(9));
    fact->set_depth(from->id(3));
    fact->set_nonlinearity(from->text());
  }
  return structure;
}

v1::Event event_of(Instructions* from) {
  v1::Event event;
  event.set_step(from->step());
  event.set_kind(static_cast<v1::Event::Kind>(from->below(10)));
  event.set_code(from->text());
  event.set_message(from->text());
  event.set_scope(from->scope());
  event.set_entity(from->id(6));
  event.set_count(from->word());
  return event;
}

v1::Health health_of(Instructions* from) {
  v1::Health health;
  health.set_step(from->step());
  health.set_messages_dropped(from->word());
  health.set_steps_seen(from->word());
  health.set_training_seconds(from->number());
  health.set_tycho_seconds(from->number());
  v1::ProbeCost* cost = health.add_cost();
  cost->set_probe(from->text());
  cost->set_seconds(from->number());
  cost->set_observations(from->word());
  return health;
}

void write_segment(const std::string& directory, Instructions* from) {
  tycho::trace::RunWriterOptions options;
  options.directory = directory;
  options.compression_level = 0;
  options.sync_interval = std::chrono::milliseconds(-1);
  v1::RunDescription run;
  run.set_run_id("fuzz");
  run.set_run_name(from->text());
  run.set_resumed(from->below(2) == 0);
  run.set_resume_step(from->step());
  run.set_loss_reduction(from->text());
  auto writer = tycho::trace::RunWriter::open(options, run, model_of(from), registry_of(from));
  if (!writer.ok()) return;
  // A repeated record makes series long enough for a law to speak.
  v1::Record last;
  while (!from->done() && from->below(32) > 0) {
    const auto time = static_cast<int64_t>(from->below(3));
    switch (from->below(10)) {
      case 0:
        writer.value()->write(settings_of(from), time);
        break;
      case 1:
        writer.value()->write(structure_of(from), time);
        break;
      case 2:
        writer.value()->write(event_of(from), time);
        break;
      case 3:
        writer.value()->write(health_of(from), time);
        break;
      case 4:
      case 5:
        for (uint32_t i = from->below(200); i > 0; --i) {
          last.set_step(static_cast<int64_t>(static_cast<uint64_t>(last.step()) + 1));
          writer.value()->write("probe", last, time);
        }
        break;
      default:
        last = record_of(from);
        writer.value()->write("probe", last, time);
    }
  }
  (void)writer.value()->close();
}

}  // namespace

namespace {

/// The trace beside itself as runs of three widths, batch sizes and learning rates, so that laws
/// over several runs have something to do.
void compare_with_itself(const std::string& directory) {
  const auto digest = tycho::analyzer::digest_run(directory, {});
  if (!digest.ok()) return;
  std::vector<tycho::analyzer::RunDigest> runs;
  for (int i = 0; i < 6; ++i) {
    tycho::analyzer::RunDigest run = digest.value();
    run.run.set_run_id(std::to_string(i));
    run.run.set_optimizer(i < 3 ? "SGD" : "Adam");
    const int64_t times = 1 << (i % 3);
    run.batch_size = 8.0 * static_cast<double>(times);
    run.peak_learning_rate = 0.1 * static_cast<double>(times);
    for (v1::Parameter& parameter : *run.model.mutable_parameter()) {
      parameter.clear_shape();
      parameter.add_shape(16 * times);
      parameter.add_shape(16 * times);
    }
    runs.push_back(std::move(run));
  }
  for (const bool ignore : {false, true}) {
    tycho::analyzer::ComparisonOptions options;
    if (ignore) options.ignored = {"batch size", "learning rate"};
    const auto comparison = tycho::analyzer::compare(runs, {}, options);
    (void)tycho::analyzer::text_comparison(comparison, false, 80);
    (void)tycho::analyzer::json_comparison(comparison);
    (void)tycho::analyzer::html_comparison(comparison);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string directory =
      (std::filesystem::temp_directory_path() / ("tycho-fuzz-report-" + std::to_string(::getpid())))
          .string();
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  Instructions instructions(data, size);
  for (int segment = 0; segment < 3 && (segment == 0 || !instructions.done()); ++segment) {
    write_segment(directory, &instructions);
  }
  const auto report = tycho::analyzer::read_report(directory, nullptr);
  if (report.ok()) {
    (void)tycho::analyzer::text_report(report.value(), true, 80);
    (void)tycho::analyzer::json_report(report.value());
    (void)tycho::analyzer::html_report(report.value());
    compare_with_itself(directory);
  }
  std::filesystem::remove_all(directory, ignored);
  return 0;
}
