package apis

// Limits are the fields that bound how much is generated, in some API or in an engine's
// own dialect. Engines know each of them in operations whose own it is not, in an order
// of their own: of those that are no operation's Limits nobody may rely on one, nor pass
// one over.
var Limits = [...]string{"max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict"}

// Choices are the fields that say how many answers are generated: the API's own first,
// then those of which an engine makes more answers than it returns, or its own name for
// the first.
var Choices = [...]string{"n", "best_of", "n_cmpl"}
