package pick

import (
	"math"
	"math/bits"

	"millrace.dev/millrace/internal/apis"
	"millrace.dev/millrace/internal/trust"
)

// Shape is what of a request the length of its answer is estimated by, beside its words.
type Shape struct {
	// API is the operation. Blind is whether the body was not read.
	API   apis.API
	Blind bool
	// Tools is whether the model may call some, Stream whether the answer comes in
	// pieces.
	Tools, Stream bool
	// Limit is the most tokens that may be generated; below 0: no limit.
	Limit int
	// Prompt is the prompt's tokens. Guess is what they seemed to be before Ratio;
	// 0: they were counted.
	Prompt, Guess int
	// Choices is how many answers are generated; 0: nothing is known of the request.
	Choices int
}

// How finely shapes are distinguished.
const (
	limits  = 8 // none, and by powers of four up from 16
	prompts = 4 // by powers of eight up from 64
	sizes   = 2 // of guesses: short prompts are mostly template
)

// shortGuess is the longest guess that is short.
const shortGuess = 256

// shapes is by shape the mean length of answers, and by API the same.
type shapes struct {
	fine   [apis.Len][2][2][limits][prompts]average
	coarse [apis.Len]average
}

// at returns the shape's average.
func (t *shapes) at(s *Shape) *average {
	return &t.fine[s.API%apis.Len][bit(s.Tools)][bit(s.Stream)][s.limit()][s.prompt()]
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// limit is the bucket of the limit.
func (s *Shape) limit() int {
	if s.Limit < 0 {
		return 0
	}
	return 1 + min(limits-2, max(0, bits.Len(uint(s.Limit))-3)/2)
}

// prompt is the bucket of the prompt's length.
func (s *Shape) prompt() int {
	return min(prompts-1, max(0, bits.Len(uint(max(0, s.Prompt)))-4)/3)
}

// Output returns how many tokens one answer to a request of a shape is expected to
// have. Until answers of the shape have come it is as for the API, and until then
// as for the model.
func (l *Learned) Output(s *Shape) int {
	n := l.output.value(firstOutput)
	if s.Choices > 0 {
		n = l.shapes.at(s).value(l.shapes.coarse[s.API%apis.Len].value(n))
	}
	out := int(math.Ceil(n))
	if s.Limit >= 0 && s.Limit < out {
		return s.Limit
	}
	return out
}

// learnOutput takes in how long an answer was. One that reached its limit would
// have been longer without: it does not make those of other shapes seem shorter.
func (l *Learned) learnOutput(s *Shape, completion int) {
	if completion <= 0 {
		return
	}
	n := float64(completion)
	model := l.output.value(firstOutput)
	if s.Choices == 0 {
		l.output.add(n, firstOutput)
		return
	}
	n /= float64(s.Choices)
	cut := s.Limit >= 0 && n >= float64(s.Limit)
	api := &l.shapes.coarse[s.API%apis.Len]
	l.shapes.at(s).add(n, api.value(model))
	if !cut || n > api.value(model) {
		api.add(n, model)
	}
	if !cut || n > model {
		l.output.add(n, firstOutput)
	}
}

// LearnLength takes in how long an answer and its prompt were.
func (l *Learned) LearnLength(u Usage) {
	u = u.believed(0)
	l.learnOutput(&u.Shape, u.Completion)
	l.learnRatio(&u.Shape, u.Prompt)
}

// ratios is by what the true length of prompts differs from guesses: by API and
// size, those of bodies that were not read apart, and for all.
type ratios struct {
	fine    [apis.Len + 1][sizes]average
	all     average
	guessed average // length of guesses
}

func (r *ratios) at(s *Shape) *average {
	api := int(s.API % apis.Len)
	if s.Blind {
		api = apis.Len
	}
	return &r.fine[api][bit(s.Guess > shortGuess)]
}

// Guessed returns how many tokens a prompt has that nobody can count, given what a
// rule of thumb says, which is taken in.
func (l *Learned) Guessed(s *Shape) int {
	if s.Guess <= 0 {
		return 0
	}
	l.ratios.guessed.add(float64(s.Guess), float64(s.Guess))
	return int(math.Ceil(float64(s.Guess) * l.Ratio(s)))
}

// Ratio is by what to multiply a guess.
func (l *Learned) Ratio(s *Shape) float64 {
	return l.ratios.at(s).value(l.ratios.all.value(1))
}

// Bounds of a ratio, and of what one answer may say of it once some are known.
const (
	leastRatio, mostRatio = 0.1, 10
	ratioStep             = 2
	ratioKnown            = 8 // answers
)

// learnRatio takes in the true length of a prompt that was guessed.
func (l *Learned) learnRatio(s *Shape, prompt int) {
	if s.Guess > 0 && prompt > 0 {
		l.ratios.at(s).ratio(float64(prompt)/float64(s.Guess), l.ratios.all.value(1))
	}
}

// learnMean is the same for engines that say only how long prompts were on average:
// so were our guesses, if all that they get comes from us.
func (l *Learned) learnMean(prompt float64) {
	if guess := l.ratios.guessed.value(0); guess > 0 && prompt > 0 {
		l.ratios.all.ratio(prompt/guess, 1)
	}
}

// ratio takes a ratio in, bounded by those before it.
func (a *average) ratio(x, first float64) {
	x = trust.Clamp(x, leastRatio, mostRatio)
	much := a.contradicted(x, first, ratioStep)
	if v := a.value(first); a.n.Load() >= ratioKnown && !much {
		x = trust.Clamp(x, v/ratioStep, v*ratioStep)
	}
	a.move(x, much, first)
}
