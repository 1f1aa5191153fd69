// The verbs of the binary: one file each, which adds its subcommand, options and callback.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace dropcycle {

class Error;
enum class Status : int;

// What main() returns where the verb ends without an exception.
Status& verb_status();

void add_compare(CLI::App& app);
void add_config(CLI::App& app);
void add_export(CLI::App& app);
void add_import(CLI::App& app);
void add_inspect(CLI::App& app);
void add_preprocess(CLI::App& app);
void add_tokenizer(CLI::App& app);
void add_upcycle(CLI::App& app);
void add_verify(CLI::App& app);
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_plan(CLI::App& app);
void add_bench(CLI::App& app);

// `--set key=value`, repeatable, of every verb that reads a configuration.
void add_set_option(CLI::App& verb, std::vector<std::string>& overrides);

// One line on standard error, "dropcycle: error: [rank N: ]message" (no "error" for Status::requeue, which is none);
// `rank` is shown if it isn't negative. Returns the exit status.
int report(const Error& error, int rank = -1);

}  // namespace dropcycle
