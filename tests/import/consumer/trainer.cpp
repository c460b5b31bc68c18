// Trains a line for a few steps; the first argument is the run directory.
#include <torch/torch.h>
#include <tycho/tycho.h>

int main(int, char** argv) {
  torch::manual_seed(1);
  torch::nn::Linear model(3, 1);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  tycho::Session session(*model, optimizer, tycho::SessionOptions(argv[1]));
  for (int step = 0; step < 20; ++step) {
    const auto x = torch::randn({16, 3});
    optimizer.zero_grad();
    auto loss = torch::mse_loss(model->forward(x), x.sum(1, true));
    loss.backward();
    optimizer.step();
    session.step(loss, 16);
  }
  session.close();
}
