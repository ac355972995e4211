package pick

// Goal is how fast a request is to be answered, in milliseconds; 0: it does not matter.
type Goal struct {
	// TTFT is for the time to the first token, TPOT for that of each further one, E2E for the
	// time until the answer is whole.
	TTFT, TPOT, E2E float64
}

// goalWorth is what a goal that is met is worth, in milliseconds of the request's time. Found on
// the training half of generated workloads (extproc/replay).
const goalWorth = 5000

// Cost orders candidates: the least is the best. It is in milliseconds, and each term is worth
//
//	Wait, Load, Prefill, Decode  1: the time until the answer is whole, whoever spends it
//	Fill    1 for a millisecond of others' prompts that are evicted, by how likely they are needed again
//	Delay   workTwice, holdWaiting and holdRunning for a millisecond of the prompt, which is taken from others
//	Shared  -1 for a millisecond of the prompt that others have the use of
//	Goal    goalWorth for a goal that is missed, by how likely that is
//
// So a request goes where it meets its goals if that costs less than goalWorth elsewhere; where it is
// sure to meet them, or to miss them, everywhere, the time decides: who is late already is not
// made later.
func (t *Terms) Cost() float64 { return t.Finish() + t.Fill + t.Delay - t.Shared + t.Goal }

// miss is how likely what is predicted to take so long takes longer than a goal; 0: there is none.
// Predictions are off by a factor whose logarithm is logistic: one in 17 of those that are
// predicted to take half of the goal misses it, every second one that is predicted to take all of it.
func miss(predicted, goal float64) float64 {
	if goal <= 0 || predicted <= 0 {
		return 0
	}
	x := goal / predicted
	x *= x
	return 1 / (1 + x*x)
}

// risk is how likely a request misses one of its goals, if so long is predicted to its first
// token, for each further one, and until the answer is whole, in milliseconds.
func (g *Goal) risk(first, each, whole float64) float64 {
	return 1 - (1-miss(first, g.TTFT))*(1-miss(each, g.TPOT))*(1-miss(whole, g.E2E))
}
