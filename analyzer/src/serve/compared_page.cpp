#include "compared_page.h"

#include <stdexcept>

#include "src/compare/comparison.h"
#include "src/serve/pages.h"

namespace tycho::analyzer {
namespace {

struct GivenUp : std::runtime_error {
  GivenUp() : std::runtime_error("given up") {}
};

}  // namespace

Result<std::string> compared_page(const std::vector<std::string>& directories,
                                  const std::function<bool()>& gives_up) {
  try {
    auto comparison = read_comparison(directories, ComparisonOptions(), [&](size_t, uint64_t) {
      if (gives_up()) throw GivenUp();
    });
    if (!comparison.ok()) return comparison.status();
    return with_bar(html_comparison(comparison.value()));
  } catch (const GivenUp&) {
    return Status(Status::Code::kIoError,
                  "reading these runs takes too long for a page; use tycho compare");
  }
}

}  // namespace tycho::analyzer
