package workload

import (
	"math"
	"math/rand/v2"
)

// poisson is arrivals that know nothing of each other.
func poisson(r *rand.Rand, n int) []float64 { return gaps(n, r.ExpFloat64) }

// bursts is arrivals whose gaps are gamma distributed with a coefficient of variation of 2 to 5.
func bursts(r *rand.Rand, n int) []float64 {
	cv := between(r, 2, 5)
	shape := 1 / (cv * cv)
	return gaps(n, func() float64 { return gamma(r, shape) / shape })
}

// day is arrivals whose rate goes from a quarter of the mean to seven quarters and back.
func day(r *rand.Rand, n int) []float64 {
	return warped(poisson(r, n), func(x float64) float64 { return 1 - 0.75*math.Cos(2*math.Pi*x) })
}

// flash is arrivals that come ten times as fast for a while.
func flash(r *rand.Rand, n int) []float64 {
	const length, factor = 0.03, 10
	from := between(r, 0.3, 0.6)
	return warped(poisson(r, n), func(x float64) float64 {
		if x >= from && x < from+length {
			return factor
		}
		return 1
	})
}

func gaps(n int, gap func() float64) []float64 {
	at, now := make([]float64, n), 0.0
	for i := range at {
		now += gap()
		at[i] = now
	}
	for i := range at { // one a second, however the dice fell
		at[i] *= float64(n) / now
	}
	return at
}

// warped moves arrivals so that they come at a rate that depends on the share of the time.
func warped(at []float64, rate func(x float64) float64) []float64 {
	const steps = 2000
	sum, total := make([]float64, steps+1), float64(len(at))
	for i := range steps {
		sum[i+1] = sum[i] + rate((float64(i)+0.5)/steps)
	}
	i := 0
	for k := range at {
		want := at[k] / total * sum[steps]
		for i < steps-1 && sum[i+1] < want {
			i++
		}
		at[k] = total * (float64(i) + min(1, max(0, want-sum[i])/(sum[i+1]-sum[i]))) / steps
	}
	return at
}

// gamma draws from a gamma distribution of scale 1, by Marsaglia and Tsang's method (2000),
// with their step for shapes below 1.
func gamma(r *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(r, shape+1) * math.Pow(r.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v *= v * v
		if math.Log(1-r.Float64()) < 0.5*x*x+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// zipf draws a number below n, of which the first is the most frequent: the k-th comes 1/k as often.
func zipf(r *rand.Rand, n int) int {
	sum := 0.0
	for k := 1; k <= n; k++ {
		sum += 1 / float64(k)
	}
	x := r.Float64() * sum
	for k := 1; k <= n; k++ {
		if x -= 1 / float64(k); x <= 0 {
			return k - 1
		}
	}
	return n - 1
}
