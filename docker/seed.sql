-- The demo's shop. Loaded once, into an empty database.
create schema shop;

create table shop.customers (
    id bigint primary key,
    name text not null,
    city text,
    tier text not null,
    created_at timestamptz not null default now()
);

create table shop.products (
    id bigint primary key,
    name text not null,
    price numeric(10, 2) not null
);

create table shop.orders (
    id bigint primary key,
    customer_id bigint not null references shop.customers,
    status text not null,
    total numeric(12, 2) not null default 0,
    placed_at timestamptz not null default now()
);
create index on shop.orders (customer_id);

create table shop.order_items (
    order_id bigint references shop.orders on delete cascade,
    line int,
    product_id bigint not null references shop.products,
    quantity int not null,
    price numeric(10, 2) not null,
    added_at timestamptz not null default now(),
    primary key (order_id, line)
);

insert into shop.customers (id, name, city, tier)
select n, 'Customer ' || n, (array['Bern', 'Lyon', 'Turin', 'Ghent', 'Porto'])[1 + n % 5], (array['basic', 'silver', 'gold'])[1 + n % 3]
from generate_series(1, 200) n;

insert into shop.products
select n, (array['lamp', 'chair', 'desk', 'shelf', 'rug'])[1 + n % 5] || ' ' || n, 1 + (n * 7919 % 20000) / 100.0
from generate_series(1, 40) n;

insert into shop.orders (id, customer_id, status, placed_at)
select n, 1 + n % 200, (array['paid', 'packed', 'shipped', 'cancelled'])[1 + n % 4], now() - make_interval(secs => n)
from generate_series(1, 1000) n;

insert into shop.order_items (order_id, line, product_id, quantity, price)
select o.id, line, p.id, 1 + (o.id + line) % 3, p.price
from shop.orders o
cross join generate_series(1, 2) line
join shop.products p on p.id = 1 + (o.id * line) % 40;

update shop.orders o
set total = (select sum(quantity * price) from shop.order_items i where i.order_id = o.id);
