#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "src/serve/server.h"
#include "tests/golden/command_run.h"

// What `tycho serve` refuses before it answers anybody.
namespace tycho::testing {
namespace {

class ServeCommandTest : public CommandTest {
 protected:
  void SetUp() override {
    if (!analyzer::can_serve()) GTEST_SKIP() << "built without cpp-httplib";
  }
};

TEST_F(ServeCommandTest, SaysThatAPortIsInUse) {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(descriptor, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(descriptor, 1), 0);
  ASSERT_EQ(::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  std::filesystem::create_directories(scratch_.path("runs"));
  const Outcome outcome = run("serve " + scratch_.path("runs") + " --port " + port);
  ::close(descriptor);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err,
            "tycho: cannot listen on 127.0.0.1 port " + port + ": Address already in use\n");
}

TEST_F(ServeCommandTest, RefusesWhatOthersCouldReachOrGuess) {
  std::filesystem::create_directories(scratch_.path("runs"));
  const std::string runs = scratch_.path("runs");
  for (const std::string& arguments :
       {"serve " + runs + " --host 0.0.0.0", "serve " + runs + " --token short",
        "serve " + runs + " --token 'not good at all, sir'", "serve " + runs + " --port 70000",
        "serve " + runs + " --webhook ftp://example.org", std::string("serve")}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << outcome.err;
    EXPECT_FALSE(outcome.err.empty());
  }
  const Outcome missing = run("serve " + scratch_.path("nothing"));
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_NE(missing.err.find("nothing"), std::string::npos);
}

}  // namespace
}  // namespace tycho::testing
