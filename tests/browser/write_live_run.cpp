// Stands for a trainer: writes runs step by step as it is told on standard input, a command a line,
// so that a test decides when something happens and need not wait.
//   write_live_run DIRECTORY
//   open NAME            opens the run DIRECTORY/NAME
//   steps NAME N KIND    writes N steps and flushes; KIND: below (sharpness at half the edge), edge
//   (at the edge, where the
//                        loss goes up and down), broken (the loss is NaN)
//   sweep NAME WIDTH     writes the run of a network of that width as a whole, for comparisons over
//   width close NAME           closes the run; at the end of the input all are closed
// Each command is answered by a line once it is done: "ok STEP", the last step that was written, or
// "error WHY".
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>

#include "tests/support/sweep_traces.h"
#include "tycho/trace/run_writer.h"

namespace {

using namespace tycho;

constexpr double kLearningRate = 0.1;
constexpr const char* kOfRuns[] = {"loss",
                                   "probe_loss",
                                   "batch_size",
                                   "learning_rate",
                                   "preconditioned_sharpness",
                                   "preconditioned_sharpness_error_bound",
                                   "stability_threshold"};
constexpr const char* kOfLayers[] = {"grad_norm_sq", "activation_rms", "dead_fraction"};
// Longer than a narrow screen, without a place to break.
constexpr const char* kLongName =
    "encoder_blocks_of_the_first_stage_with_grouped_queries_and_a_name_that_does_not_end."
    "projection";
constexpr const char* kLayers[] = {"conv1", "conv2", "head", kLongName};

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

v1::ModelDescription model() {
  v1::ModelDescription result;
  for (const char* path : kLayers) {
    v1::Layer* layer = result.add_layer();
    layer->set_id(static_cast<uint32_t>(result.layer_size()) - 1);
    layer->set_path(path);
    layer->set_type("torch::nn::LinearImpl");
    layer->add_parameter(layer->id());
    v1::Parameter* parameter = result.add_parameter();
    parameter->set_id(layer->id());
    parameter->set_name(std::string(path) + ".weight");
    parameter->set_layer(layer->id());
    parameter->set_role("weight");
    parameter->set_dtype("float");
    parameter->set_requires_grad(true);
    parameter->set_element_count(32 * 64);
    parameter->add_shape(32);
    parameter->add_shape(64);
  }
  return result;
}

v1::StatisticRegistry registry() {
  v1::StatisticRegistry result;
  const auto add = [&](const char* name, v1::Scope scope) {
    v1::StatisticDefinition* definition = result.add_statistic();
    definition->set_id(static_cast<uint32_t>(result.statistic_size()) - 1);
    definition->set_name(name);
    definition->set_unit("1");
    definition->set_definition("Follows from a formula.");
    definition->set_probe("formula");
    definition->add_scope(scope);
  };
  for (const char* name : kOfRuns) add(name, v1::SCOPE_RUN);
  for (const char* name : kOfLayers) add(name, v1::SCOPE_LAYER);
  return result;
}

class LiveRun {
 public:
  explicit LiveRun(const std::string& directory, const std::string& name) {
    v1::RunDescription run;
    run.set_run_id(name);
    run.set_run_name(name);
    run.set_optimizer("SGD");
    run.set_start_time_ns(now_ns());
    run.add_command_line("trainer");
    trace::RunWriterOptions options;
    options.directory = directory + "/" + name;
    auto opened = trace::RunWriter::open(options, run, model(), registry());
    if (!opened.ok()) throw std::runtime_error(opened.status().message());
    writer_ = std::move(opened).value();
    v1::OptimizerSettings settings;
    settings.set_optimizer("SGD");
    v1::ParameterGroup* group = settings.add_group();
    group->set_learning_rate(kLearningRate);
    for (uint32_t i = 0; i < std::size(kLayers); ++i) group->add_parameter(i);
    writer_->write(settings, now_ns());
  }

  void write(const std::string& kind) {
    if (kind != "below" && kind != "edge" && kind != "broken")
      throw std::runtime_error("unknown kind " + kind);
    v1::Record record;
    record.set_step(++step_);
    const auto x = static_cast<double>(step_);
    const double level = 0.3 + 2 / std::sqrt(1 + x / 10);
    // The batch is all of the data: its loss is that of the probe after the step before.
    const double after = level * (kind == "edge" && step_ % 2 == 0 ? 1.1 : 1);
    const double loss = kind == "broken" ? std::nan("") : before_;
    before_ = after;
    const double threshold = 2 / kLearningRate;
    const double ratio = (kind == "edge" ? 1 : 0.5) * (1 + 0.01 * std::sin(1.7 * x));
    const double of_run[] = {loss, after, 32, kLearningRate, ratio * threshold, 0.1, threshold};
    for (uint32_t i = 0; i < std::size(kOfRuns); ++i) {
      v1::Column* column = record.add_column();
      column->set_statistic(i);
      column->set_scope(v1::SCOPE_RUN);
      column->add_value(of_run[i]);
    }
    for (uint32_t i = 0; i < std::size(kOfLayers); ++i) {
      v1::Column* column = record.add_column();
      column->set_statistic(static_cast<uint32_t>(std::size(kOfRuns)) + i);
      column->set_scope(v1::SCOPE_LAYER);
      for (uint32_t layer = 0; layer < std::size(kLayers); ++layer) {
        const double wave = 1 + 0.2 * std::sin(0.3 * x + layer);
        const double base[] = {wave * (layer + 1) / (1 + x / 20), wave * (1 + 0.5 * layer),
                               0.1 * wave};
        column->add_entity(layer);
        column->add_value(base[i]);
      }
    }
    writer_->write("formula", record, now_ns());
  }

  void flush() { check(writer_->flush()); }
  void close() { check(writer_->close()); }
  int64_t step() const { return step_; }

 private:
  static void check(const Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
  }

  std::unique_ptr<trace::RunWriter> writer_;
  int64_t step_ = -1;
  double before_ = 2.5;
};

// Returns what is answered.
int64_t obey(const std::string& line, const std::string& directory,
             std::map<std::string, LiveRun>* runs) {
  std::istringstream words(line);
  std::string command;
  std::string name;
  words >> command >> name;
  if (command == "open") return runs->try_emplace(name, directory, name).first->second.step();
  if (command == "sweep") {
    testing::SweepTrace sweep;
    sweep.name = name;
    words >> sweep.width;
    sweep.stable = false;
    testing::write_sweep_trace(directory + "/" + name, sweep);
    return sweep.steps - 1;
  }
  LiveRun& run = runs->at(name);
  if (command == "steps") {
    int count = 0;
    std::string kind;
    words >> count >> kind;
    for (int i = 0; i < count; ++i) run.write(kind);
    run.flush();
  } else if (command == "close") {
    run.close();
  } else {
    throw std::runtime_error("unknown command " + command);
  }
  return run.step();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: write_live_run DIRECTORY\n");
    return 2;
  }
  std::map<std::string, LiveRun> runs;
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << "ok " << obey(line, argv[1], &runs) << std::endl;
    } catch (const std::exception& error) {
      std::cout << "error " << error.what() << std::endl;
    }
  }
  return 0;
}
