#include "src/alerts/alert_hook.h"

// In place of webhook.cpp where cpp-httplib was not there when this was built.
namespace tycho::analyzer {

Result<std::unique_ptr<AlertHook>> open_webhook(const std::string&, std::chrono::milliseconds) {
  return Status(Status::Code::kInvalidArgument,
                "--webhook: this tycho was built without cpp-httplib: install libcpp-httplib-dev "
                "and build it again");
}

}  // namespace tycho::analyzer
